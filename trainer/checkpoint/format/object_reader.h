// ObjectReader: ranges of objects as they stand in a step folder, whatever the shards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "proto/checkpoint.pb.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

// Thread-compatible.
class ObjectReader {
 public:
  // Both must outlive the reader; `manifest` is the decoded one of `step`, and its objects are
  // tiled by their shards (VerifyStep).
  ObjectReader(const Folder* step, const Manifest* manifest);

  // Null when there is no such object.
  const StoredObject* Find(ObjectKind kind, absl::string_view name) const;

  // Elements [begin, end) of the object read as one row-major array. `bytes` has their size. No
  // checksum is looked at: verify the step before, where that matters. Errors name file and object.
  absl::Status Read(const StoredObject& object, uint64_t begin, uint64_t end,
                    std::span<std::byte> bytes);

 private:
  absl::Status ReadBox(const StoredObject& object, const Box& box, std::span<std::byte> bytes);
  absl::StatusOr<const ReadableFile*> Open(uint32_t file);

  const Folder* step_;
  const Manifest* manifest_;
  std::map<std::pair<int, absl::string_view>, const StoredObject*> objects_;
  std::map<uint32_t, std::unique_ptr<ReadableFile>> files_;
};

}  // namespace moesaic
