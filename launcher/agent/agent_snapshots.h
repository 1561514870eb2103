// AgentSnapshots: what an agent does with the snapshots in its folder: writes them to disk, copies
// peers', and removes those of jobs that are over. One thing at a time, in the order asked for, on
// a thread of its own.
#pragma once

#include <deque>
#include <functional>
#include <thread>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "launcher/agent/agent_folder.h"
#include "launcher/agent/snapshot_memory.h"
#include "proto/agent.pb.h"
#include "scheduler/client/snapshot_peer.h"

namespace moesaic {

// Thread-safe.
class AgentSnapshots {
 public:
  using Say = std::function<void(AgentMessage)>;

  // `folder` must outlive this; `say` is called from the thread.
  AgentSnapshots(AgentFolder* folder, SnapshotPeerFactory open_peer, Say say);
  // Finishes what it is at, and drops the rest.
  ~AgentSnapshots();
  AgentSnapshots(const AgentSnapshots&) = delete;
  AgentSnapshots& operator=(const AgentSnapshots&) = delete;

  // Writes each arena's shards; one ShardsPersisted a rank.
  void Persist(PersistSnapshot persist);
  // Copies a peer's snapshots; SnapshotReplicated says how it went.
  void Replicate(ReplicateSnapshot replicate);
  // Removes all snapshots of the job, after what was asked for before.
  void Forget(ForgetJob forget);
  // Makes the job's folder, for a generation that starts. Waits for its removal, if that was asked
  // for.
  absl::Status Prepare(const std::string& job);

  // What is there now, for all that needs no thread: registration, service to peers, KeepSnapshots.
  SnapshotMemory& memory() { return memory_; }

 private:
  void Run();
  void Enqueue(AgentCommand command);
  void Do(const AgentCommand& command);
  void ReplicateRanks(const ReplicateSnapshot& replicate);
  void PersistRanks(const PersistSnapshot& persist);
  ShardsPersisted PersistRank(const PersistSnapshot& persist, const RankArena& arena) const;
  absl::StatusOr<ShardsPersisted> WriteRank(const PersistSnapshot& persist,
                                            const RankArena& arena) const;
  bool WillForget(const std::string& job) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  AgentFolder* const folder_;
  const SnapshotPeerFactory open_peer_;
  const Say say_;
  SnapshotMemory memory_;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<AgentCommand> queue_ ABSL_GUARDED_BY(mutex_);  // the front one is being done
  std::thread thread_;
};

}  // namespace moesaic
