// SnapshotMemory: the snapshots in an agent's folder, those of its own ranks and copies of peers'.
// The files say what they are; nothing else is remembered.
//
//   <folder>/<job>/g<generation>-r<rank>.<buffer>           written by a rank of this host
//   <folder>/<job>/copies/g<generation>-r<rank>-s<step>     copied from a peer; "….tmp" until whole
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "proto/agent.pb.h"
#include "scheduler/client/snapshot_peer.h"

namespace moesaic {

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

  // What AgentService serves. FailedPrecondition "stale generation" for a caller of a generation that
  // was not admitted, or with another token; NotFound: it is not held; InvalidArgument: a range
  // outside its object; DataLoss: a checksum. Pieces are at most 1 MiB and do not cross ranges;
  // `write` returns false when the caller is gone.
  absl::StatusOr<SnapshotIndex> Index(const SnapshotRef& snapshot) const;
  absl::Status Read(const ReadSnapshotRequest& request,
                    const std::function<bool(const SnapshotBytes&)>& write) const;

  // Copies the ranks' snapshots from `peer`, which `request.from` names, on several streams; every
  // chunk is checked, and a copy gets its name when it is whole. Copies of older steps stay until
  // Keep. ResourceExhausted when there is not enough room: what was there before stays.
  absl::StatusOr<std::vector<HeldSnapshot>> Replicate(const ReplicateSnapshot& request,
                                                      std::shared_ptr<SnapshotPeer> peer) const;

  // Removes the job's snapshots that are not in the list, except those of `running`, the generation
  // that runs here (0: none), and own ones that are newer than all of the list: ranks may have made
  // them after it, the last ones of a generation that has stopped above all.
  void Keep(const KeepSnapshots& keep, uint64_t running) const;

  // Forgets the tokens of the job, whose files the caller removes.
  void Forget(const std::string& job);

 private:
  absl::Status CheckCaller(const SnapshotRef& snapshot) const;
  absl::Status CheckRoom(uint64_t bytes) const;
  absl::StatusOr<HeldSnapshot> CopyRank(const ReplicateSnapshot& request, uint32_t rank,
                                        const std::shared_ptr<SnapshotPeer>& peer) const;
  std::string JobFolder(const std::string& job) const { return options_.folder + "/" + job; }

  const SnapshotMemoryOptions options_;
  mutable Mutex mutex_;
  // By job and generation.
  std::map<std::pair<std::string, uint64_t>, std::string> tokens_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moesaic
