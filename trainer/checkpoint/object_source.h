// ObjectSource: what a restore reads from: a step folder on disk, a snapshot in this host's memory,
// one in another host's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"
#include "scheduler/client/snapshot_peer.h"
#include "trainer/checkpoint/format/file_system.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/snapshot_arena.h"

namespace moesaic {

// Immutable; thread-safe.
class ObjectSource {
 public:
  virtual ~ObjectSource() = default;
  // For messages.
  virtual const std::string& name() const = 0;
  virtual const TrainingState& state() const = 0;
  virtual std::span<const StoredPart> parts() const = 0;

  // Takes pieces of a part: where each begins in it, in bytes, and its bytes. Pieces come in order,
  // one after another, and are whole elements.
  using Sink = std::function<void(uint64_t begin, std::span<const std::byte> bytes)>;
  // Gives at least bytes [begin, end) of a part, and as little more as its checksums allow: those
  // of a snapshot are of 1 MiB chunks, that of a shard on disk is of the whole. On OK all that the
  // sink was given has matched its checksum; on an error it may not have. DataLoss names the object
  // (and the file) of bytes that are missing or damaged; Unavailable: the system or the peer cannot
  // read.
  virtual absl::Status Read(int part, uint64_t begin, uint64_t end, const Sink& sink) const = 0;
};

// `step` and `manifest` (of it) must outlive the source.
std::unique_ptr<ObjectSource> StepFolderSource(const Folder& step, const Manifest& manifest);

// An arena file of this host. Errors as SnapshotReader::Open, and DataLoss when it is not the
// snapshot that `held` says.
absl::StatusOr<std::unique_ptr<ObjectSource>> OpenArenaSource(const HeldSnapshot& held);

// The index of a snapshot that a peer holds. Errors as SnapshotPeer, and DataLoss for one that is
// damaged or of another snapshot.
absl::StatusOr<SnapshotIndex> FetchSnapshotIndex(SnapshotPeer* peer, const SnapshotRef& snapshot);

// A snapshot that the agent of `node` holds, with its index.
std::unique_ptr<ObjectSource> PeerSource(std::shared_ptr<SnapshotPeer> peer,
                                         const SnapshotRef& snapshot, const std::string& node,
                                         SnapshotIndex index);

// Both: asks for the index at once.
absl::StatusOr<std::unique_ptr<ObjectSource>> OpenPeerSource(std::shared_ptr<SnapshotPeer> peer,
                                                             const SnapshotRef& snapshot,
                                                             const std::string& node);

}  // namespace moesaic
