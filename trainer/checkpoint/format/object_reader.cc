#include "trainer/checkpoint/format/object_reader.h"

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {

ObjectReader::ObjectReader(const Folder* step, const Manifest* manifest)
    : step_(step), manifest_(manifest) {
  for (const StoredObject& object : manifest->objects()) {
    objects_[{object.kind(), object.name()}] = &object;
  }
}

const StoredObject* ObjectReader::Find(ObjectKind kind, absl::string_view name) const {
  const auto found = objects_.find({kind, name});
  return found == objects_.end() ? nullptr : found->second;
}

absl::Status ObjectReader::Read(const StoredObject& object, uint64_t begin, uint64_t end,
                                std::span<std::byte> bytes) {
  for (const Box& box : BoxesOfFlatRange(AsShape(object.shape()), begin, end)) {
    const uint64_t size = CheckedBytes(object.element(), AsShape(box.length())).value_or(0);
    absl::Status read = ReadBox(object, box, bytes.first(size));
    if (!read.ok()) return read;
    bytes = bytes.subspan(size);
  }
  return absl::OkStatus();
}

absl::Status ObjectReader::ReadBox(const StoredObject& object, const Box& box,
                                   std::span<std::byte> bytes) {
  const uint64_t element = ElementBytes(object.element());
  for (const Shard& shard : object.shards()) {
    if (!Intersect(shard.box(), box)) continue;
    absl::StatusOr<const ReadableFile*> file = Open(shard.file());
    if (!file.ok()) return file.status();
    RunCursor cursor(shard.box(), box);
    for (ElementRun run; cursor.Next(&run);) {
      absl::Status read =
          (*file)->ReadAt(shard.begin() + run.source * element,
                          bytes.subspan(run.target * element, run.count * element));
      if (!read.ok()) {
        return absl::Status(read.code(), absl::StrCat("object ",
                                                      ObjectLabel(object.kind(), object.name()),
                                                      ": ", read.message()));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<const ReadableFile*> ObjectReader::Open(uint32_t file) {
  std::unique_ptr<ReadableFile>& known = files_[file];
  if (known == nullptr) {
    absl::StatusOr<std::unique_ptr<ReadableFile>> opened =
        step_->Open(manifest_->files(static_cast<int>(file)).name());
    if (!opened.ok()) return opened.status();
    known = *std::move(opened);
  }
  return known.get();
}

}  // namespace moesaic
