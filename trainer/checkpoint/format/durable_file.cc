#include "trainer/checkpoint/format/durable_file.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace moesaic {
namespace {

std::string TemporaryName(const std::string& name) { return absl::StrCat(name, ".tmp"); }

}  // namespace

absl::StatusOr<std::unique_ptr<DurableFileWriter>> DurableFileWriter::Create(Folder* folder,
                                                                             std::string name) {
  absl::StatusOr<std::unique_ptr<WritableFile>> file = folder->Create(TemporaryName(name));
  if (!file.ok()) return file.status();
  return std::unique_ptr<DurableFileWriter>(
      new DurableFileWriter(folder, std::move(name), *std::move(file)));
}

DurableFileWriter::DurableFileWriter(Folder* folder, std::string name,
                                     std::unique_ptr<WritableFile> file)
    : folder_(folder), file_(std::move(file)) {
  stored_.set_name(std::move(name));
}

DurableFileWriter::~DurableFileWriter() {
  if (file_ == nullptr) return;
  file_.reset();
  // What is left behind when this fails lies in a staging folder, which is swept.
  (void)folder_->RemoveFile(TemporaryName(stored_.name()));
}

absl::Status DurableFileWriter::Append(std::span<const std::byte> bytes) {
  hash_.Update(bytes);
  stored_.set_bytes(stored_.bytes() + bytes.size());
  return file_->Append(bytes);
}

absl::Status DurableFileWriter::Append(absl::string_view text) {
  return Append(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

absl::StatusOr<StoredFile> DurableFileWriter::Finish() {
  if (absl::Status synced = file_->Sync(); !synced.ok()) return synced;
  absl::Status renamed =
      folder_->Rename(TemporaryName(stored_.name()), folder_, stored_.name());
  if (!renamed.ok()) return renamed;
  file_.reset();
  stored_.set_xxh3(hash_.Digest());
  return stored_;
}

absl::StatusOr<StoredFile> WriteDurableFile(Folder* folder, const std::string& name,
                                            absl::string_view content) {
  absl::StatusOr<std::unique_ptr<DurableFileWriter>> writer =
      DurableFileWriter::Create(folder, name);
  if (!writer.ok()) return writer.status();
  if (absl::Status written = (*writer)->Append(content); !written.ok()) return written;
  return (*writer)->Finish();
}

}  // namespace moesaic
