// DurableFileWriter: a file that is either absent or whole. It is written as "<name>.tmp",
// checksummed on the way, fsynced, and then renamed.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

// Thread-compatible. When it is destroyed before Finish, the temporary file is removed.
class DurableFileWriter {
 public:
  // `folder` must outlive the writer.
  static absl::StatusOr<std::unique_ptr<DurableFileWriter>> Create(Folder* folder,
                                                                   std::string name);
  ~DurableFileWriter();
  DurableFileWriter(const DurableFileWriter&) = delete;
  DurableFileWriter& operator=(const DurableFileWriter&) = delete;

  absl::Status Append(std::span<const std::byte> bytes);
  absl::Status Append(absl::string_view text);
  // Bytes so far.
  uint64_t bytes() const { return stored_.bytes(); }

  // Returns when the content is on stable storage under its name; the name itself is durable after
  // Folder::Sync, which is one call for many files.
  absl::StatusOr<StoredFile> Finish();

 private:
  DurableFileWriter(Folder* folder, std::string name, std::unique_ptr<WritableFile> file);

  Folder* folder_;
  StoredFile stored_;
  std::unique_ptr<WritableFile> file_;  // null once renamed
  Xxh3Stream hash_;
};

// A small file in one call.
absl::StatusOr<StoredFile> WriteDurableFile(Folder* folder, const std::string& name,
                                            absl::string_view content);

}  // namespace moesaic
