// SnapshotArena: the shared-memory file into which a worker copies its objects at a step boundary,
// and from which its agent persists them. The agent names the path (RankEntry.arena_path); buffer b
// is the file "<path>.<b>". It outlives the worker.
//
// Layout: "MOEARENA", u32 version 2, u32 0, u64 index bytes, u64 XXH3-64 of the index, the
// SnapshotIndex message; then objects, each at its 64-byte aligned offset. While it is being
// written the magic is "MOEWRITE".
//
// Every chunk of an object has a checksum in the index. The worker computes it from its own memory
// in the pass that copies, so that a torn copy, a flipped bit and a file that is written anew while
// somebody reads it are all found by whoever reads the bytes: the agent that persists or replicates
// them, and the rank that restores from them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"

namespace moesaic {

inline constexpr uint64_t kSnapshotChunk = 1 << 20;

// Of an object of so many bytes.
inline uint64_t SnapshotChunks(uint64_t bytes) {
  return bytes / kSnapshotChunk + (bytes % kSnapshotChunk != 0);
}

// DataLoss, naming the object, unless `bytes` are those of the chunk.
absl::Status CheckChunk(const ArenaObject& object, uint64_t chunk,
                        std::span<const std::byte> bytes);

// An index that somebody else sent, whose file is not here: DataLoss unless its objects lie one
// after another and every chunk has its checksum.
absl::Status CheckSnapshotIndex(const SnapshotIndex& index);

// The worker's side, and that of an agent that copies a peer's. One file, for one snapshot after
// another: memory that is mapped already is filled at several times the speed of new memory.
class SnapshotWriter {
 public:
  // Creates or reuses the file, sized for `index` (whose offsets and checksums it fills in).
  // ResourceExhausted when the file system has not enough room; nothing is left half-made then.
  static absl::StatusOr<std::unique_ptr<SnapshotWriter>> Create(const std::string& path,
                                                                SnapshotIndex index);
  virtual ~SnapshotWriter() = default;
  virtual const SnapshotIndex& index() const = 0;
  // Begins another snapshot in the same file, or in a new one in its place when the size differs.
  // What was there is none any more, also after an error. Errors as Create.
  virtual absl::Status Begin(SnapshotIndex index) = 0;
  // What is there is no snapshot any more, to whoever opens it and to readers that ask. The file
  // stays, for Begin.
  virtual void Clear() = 0;
  // Copies a chunk of object i and notes its checksum. `bytes` are the chunk's alone. Each chunk
  // once; different chunks from any threads.
  virtual void CopyChunk(int i, uint64_t chunk, std::span<const std::byte> bytes) = 0;
  // The same for bytes that come in pieces: the place of the chunk, to be filled by the caller, who
  // then notes its checksum.
  virtual std::span<std::byte> Place(int i, uint64_t chunk) = 0;
  virtual void NoteChecksum(int i, uint64_t chunk, uint64_t xxh3) = 0;
  // All chunks of object i, one after another.
  void CopyObject(int i, std::span<const std::byte> bytes) {
    for (uint64_t chunk = 0; chunk < SnapshotChunks(bytes.size()); ++chunk) {
      const auto rest = bytes.subspan(chunk * kSnapshotChunk);
      CopyChunk(i, chunk, rest.first(std::min<uint64_t>(kSnapshotChunk, rest.size())));
    }
  }
  // Marks the file complete, when all chunks are there.
  virtual absl::Status Finish() = 0;
};

// The reader's side: a read-only mapping. Immutable; thread-safe.
class SnapshotReader {
 public:
  // DataLoss when the file is torn, incomplete or inconsistent; every size is checked. The objects'
  // bytes are not looked at yet.
  static absl::StatusOr<std::unique_ptr<SnapshotReader>> Open(const std::string& path);
  // `file` came from elsewhere: it must lie below `root`, and no link leads to it
  // (base/confined_file.h).
  static absl::StatusOr<std::unique_ptr<SnapshotReader>> OpenBelow(const std::string& root,
                                                                   const std::string& file);
  virtual ~SnapshotReader() = default;
  virtual const SnapshotIndex& index() const = 0;
  // Takes pieces of an object: where each begins in it, and its bytes.
  using Sink = std::function<absl::Status(uint64_t begin, std::span<const std::byte> bytes)>;
  // Gives the chunks of object i that meet bytes [begin, end), in order, each after its checksum
  // was found right. DataLoss names the object; otherwise the sink's error.
  virtual absl::Status Read(int i, uint64_t begin, uint64_t end, const Sink& sink) const = 0;
  // A chunk as it lies there, for whoever checks it later (CheckChunk). Valid as long as this.
  virtual std::span<const std::byte> Chunk(int i, uint64_t chunk) const = 0;
  // Whether the file is still marked as the snapshot that was opened.
  virtual bool Stands() const = 0;
};

}  // namespace moesaic
