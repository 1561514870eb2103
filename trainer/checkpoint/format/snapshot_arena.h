// SnapshotArena: the shared-memory file into which a worker copies its objects at a step boundary,
// and from which its agent persists them. The agent names the path (RankEntry.arena_path); buffer b
// is the file "<path>.<b>". It outlives the worker.
//
// Layout: "MOEARENA", u32 version 1, u32 0, u64 index bytes, u64 XXH3-64 of the index, the
// SnapshotIndex message; then objects, each at its 64-byte aligned offset. While it is being written
// the magic is "MOEWRITE".
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"

namespace moesaic {

// The worker's side. Thread-compatible.
class SnapshotWriter {
 public:
  // Creates or reuses the file, sized for `index` (whose offsets it fills in). ResourceExhausted
  // when the file system has not enough room; nothing is left half-made then.
  static absl::StatusOr<std::unique_ptr<SnapshotWriter>> Create(const std::string& path,
                                                                SnapshotIndex index);
  virtual ~SnapshotWriter() = default;
  virtual const SnapshotIndex& index() const = 0;
  // Memory of object i of the index.
  virtual std::span<std::byte> object(int i) = 0;
  // Marks the file complete.
  virtual absl::Status Finish() = 0;
};

// The agent's side: a read-only mapping. Immutable; thread-safe.
class SnapshotReader {
 public:
  // DataLoss when the file is torn, incomplete or inconsistent; every size is checked.
  static absl::StatusOr<std::unique_ptr<SnapshotReader>> Open(const std::string& path);
  // `file` came from elsewhere: it must lie below `root`, and no link leads to it
  // (base/confined_file.h).
  static absl::StatusOr<std::unique_ptr<SnapshotReader>> OpenBelow(const std::string& root,
                                                                   const std::string& file);
  virtual ~SnapshotReader() = default;
  virtual const SnapshotIndex& index() const = 0;
  virtual std::span<const std::byte> object(int i) const = 0;
};

}  // namespace moesaic
