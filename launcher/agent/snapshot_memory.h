// SnapshotMemory: the snapshots in an agent's folder, those of its own ranks and copies of peers'.
// The files say what they are; what is remembered of them is only that they are open.
//
//   <folder>/<job>/g<generation>-r<rank>.<buffer>           written by a rank of this host
//   <folder>/<job>/copies/g<generation>-r<rank>-s<step>     copied from a peer; "….tmp" until whole
//   <folder>/<job>/copies/g<generation>-r<rank>.free        memory for the next copy
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "proto/agent.pb.h"
#include "scheduler/client/snapshot_peer.h"
#include "trainer/checkpoint/format/snapshot_arena.h"

namespace moesaic {

// A chunk of an object as it lies in memory, not checked. Valid as long as `from`.
struct SnapshotPiece {
  std::shared_ptr<const SnapshotReader> from;
  std::span<const std::byte> bytes;
};

// What one call reads, chunk by chunk. Thread-compatible.
class SnapshotRead {
 public:
  SnapshotRead(std::shared_ptr<const SnapshotReader> reader, const ReadSnapshotRequest& request)
      : reader_(std::move(reader)), ranges_(request.ranges().begin(), request.ranges().end()) {}

  // Nothing after the last.
  std::optional<SnapshotPiece> Next();

 private:
  std::shared_ptr<const SnapshotReader> reader_;
  std::vector<ReadSnapshotRequest::Range> ranges_;
  size_t range_ = 0;
  uint64_t given_ = 0;  // bytes of the range
};

struct SnapshotMemoryOptions {
  std::string folder;
  // What a copy leaves free in the file system, for the ranks' own snapshots and for MPI.
  uint64_t reserve_bytes = 64 << 20;
};

// Thread-safe, but Replicate is called from one thread at a time.
class SnapshotMemory {
 public:
  explicit SnapshotMemory(SnapshotMemoryOptions options) : options_(std::move(options)) {}

  // Every whole snapshot. Its bytes are not read: whoever uses it checks them.
  std::vector<HeldSnapshot> Held() const;

  // From now on calls for this generation of the job must carry this token.
  void Admit(const std::string& job, uint64_t generation, const std::string& token);

  // What AgentService serves. FailedPrecondition "stale generation" for a caller of a generation
  // that was not admitted, or with another token; NotFound: it is not held; InvalidArgument: a
  // range that is not of whole chunks of its object. Nothing is checked here: the reader has the
  // checksums.
  absl::StatusOr<SnapshotIndex> Index(const SnapshotRef& snapshot) const;
  absl::StatusOr<SnapshotRead> Read(const ReadSnapshotRequest& request) const;

  // Copies the ranks' snapshots from `peer`, which `request.from` names, on several streams; every
  // chunk is checked, and a copy gets its name when it is whole. Copies of older steps stay until
  // Keep. ResourceExhausted when there is not enough room: what was there before stays.
  absl::StatusOr<std::vector<HeldSnapshot>> Replicate(const ReplicateSnapshot& request,
                                                      std::shared_ptr<SnapshotPeer> peer) const;

  // Removes the job's snapshots that are not in the list, except those of `running`, the generation
  // that runs here (0: none), and own ones that are newer than all of the list: ranks may have made
  // them after it, the last ones of a generation that has stopped above all. The
  // memory of one copy a rank stays for the next, as long as a copy of the same rank and generation
  // is kept.
  void Keep(const KeepSnapshots& keep, uint64_t running) const;

  // Forgets the tokens of the job, whose files the caller removes.
  void Forget(const std::string& job);

 private:
  // By job, generation, rank and step.
  using Name = std::tuple<std::string, uint64_t, uint32_t, uint64_t>;

  absl::Status CheckCaller(const SnapshotRef& snapshot) const;
  // The snapshot; opened once, for as long as it is held.
  absl::StatusOr<std::shared_ptr<const SnapshotReader>> Reader(const SnapshotRef& wanted) const;
  void Close(const std::string& job) const;
  absl::Status CheckRoom(uint64_t bytes) const;
  absl::StatusOr<HeldSnapshot> CopyRank(const ReplicateSnapshot& request, uint32_t rank,
                                        const std::shared_ptr<SnapshotPeer>& peer) const;
  std::string JobFolder(const std::string& job) const { return options_.folder + "/" + job; }

  const SnapshotMemoryOptions options_;
  mutable Mutex mutex_;
  // By job and generation.
  std::map<std::pair<std::string, uint64_t>, std::string> tokens_ ABSL_GUARDED_BY(mutex_);
  mutable std::map<Name, std::shared_ptr<const SnapshotReader>> open_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moesaic
