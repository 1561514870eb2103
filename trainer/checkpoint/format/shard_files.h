// Shard files: what an agent (or an import) writes into a staging folder. Objects of experts go to
// one file an expert, "x-L003-E0017.safetensors", so that an expert can be moved or left out as a
// file; all others to files of a rank, "r00002-000.safetensors", of at most `max_file_bytes`
// (an object that is larger has a file of its own).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/agent.pb.h"
#include "proto/checkpoint.pb.h"
#include "trainer/checkpoint/format/file_system.h"
#include "trainer/checkpoint/format/snapshot_arena.h"

namespace moesaic {

// A committed step whose unchanged files a save may take over.
struct EarlierStep {
  std::unique_ptr<Folder> folder;
  Manifest manifest;
};

// The staging folder at a path that came from a coordinator: "<root>/.staging/<name>", as
// BeginStaging returns it. InvalidArgument for a path of another form or with a part ".."; below
// the root no symbolic link is followed.
absl::StatusOr<std::unique_ptr<Folder>> OpenStaging(FileSystem* files, const std::string& staging);

// The newest step before `step` in the root that `staging` (a path as above) lies in. Null when
// there is none that can be read: then everything is written.
std::unique_ptr<EarlierStep> OpenEarlierStep(FileSystem* files, const std::string& staging,
                                             uint64_t step);

// Takes the next bytes of an object.
using ByteSink = std::function<absl::Status(std::span<const std::byte>)>;

// One shard to write, and where its bytes come from.
struct ShardSource {
  ObjectKind kind = MASTER;
  std::string name;
  ElementKind element = ELEMENT_F32;
  std::vector<uint64_t> shape;  // of the whole tensor
  Box box;
  int layer = -1;   // of an expert object, else -1
  int expert = -1;  // global id of an expert object, else -1
  // Gives all bytes of the box, in order, in pieces of any size.
  std::function<absl::Status(const ByteSink&)> produce;
};

struct ShardFilesOptions {
  uint32_t rank = 0;
  uint64_t step = 0;
  uint64_t max_file_bytes = 2ull << 30;
  // Where not null: a file that would have the tensors, and the bytes (by checksum), that the file
  // of its name has there is not written but linked, after all of that file has been read and
  // checked. A step folder stays complete in itself: the earlier one may go at any time. Where a
  // link is not possible, the file is written.
  const EarlierStep* earlier = nullptr;
};

// What was written; Shard.file in `objects` indexes `files`.
struct WrittenShards {
  std::vector<StoredFile> files;
  std::vector<StoredObject> objects;
};

// Writes, checksums, fsyncs and renames every file, then syncs the folder. Errors name the file.
absl::StatusOr<WrittenShards> WriteShardFiles(const std::vector<ShardSource>& sources,
                                              const ShardFilesOptions& options, Folder* staging);

// An agent's answer to PersistSnapshot for one rank: writes the snapshot's objects. The result
// holds job, generation, step, rank, state, files and objects; the caller adds `staging`.
// FailedPrecondition when the snapshot is not of `step`.
absl::StatusOr<ShardsPersisted> PersistShards(const SnapshotReader& snapshot, uint64_t step,
                                              Folder* staging,
                                              const EarlierStep* earlier = nullptr);

}  // namespace moesaic
