// JobSnapshots: the snapshots of one job, from the moment that its ranks copy them into their
// agents' memory: who holds which rank's part, which are copied to a peer, which go to disk, and
// from which the next generation can start.
//
//   collecting -> whole (every rank has copied) -> copied to peers -> forgotten once a newer one is
//                       \-> queued -> staging -> persisting -> committing -> on disk
//
// One is written to disk at a time, oldest first. A snapshot outlives its generation: the next one
// starts from memory while the disk still follows. Steps are unique: when a generation starts from
// step S, every later one is given up, so all that is left lies on the path to S (C7).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "scheduler/state/events.h"

namespace moesaic {

// What this class needs of the cluster.
class SnapshotEdge {
 public:
  virtual void Do(Action action) = 0;
  // For people who watch the job.
  virtual void Tell(const std::string& job, const std::string& note) = 0;
  // Null when the node is not registered.
  virtual const AgentRegistration* Agent(const std::string& node) const = 0;
  // Whether it is registered and has been heard of a moment ago.
  virtual bool Answers(const std::string& node) const = 0;
  // Whether it is registered and nobody wants it to go.
  virtual bool Stays(const std::string& node) const = 0;
  virtual absl::Time Now() const = 0;

 protected:
  ~SnapshotEdge() = default;
};

// The generation that makes snapshots.
struct SnapshotOrigin {
  uint64_t generation = 0;
  std::string token;
  std::string layout;
  std::vector<std::string> nodes;       // in the order of ranks; copies go round this ring
  std::vector<std::string> rank_nodes;  // by rank
  std::vector<std::string> arenas;      // by rank; "<arena>.<buffer>" is a file
  std::vector<std::string> trajectory_changes;
};

// Thread-compatible.
class JobSnapshots {
 public:
  JobSnapshots(const JobSpec& spec, absl::Duration persist_timeout)
      : spec_(spec), persist_timeout_(persist_timeout) {}

  // ---- Generations.
  // Ranks of `origin` start from step `restored`: later steps are given up.
  void Begin(SnapshotOrigin origin, uint64_t restored, uint64_t committed, SnapshotEdge* edge);
  // After a restart of the coordinator: what its record says was whole in memory. Holders come with
  // the registrations of their agents.
  void Recall(SnapshotOrigin origin, const MemoryRecord& memory, uint64_t committed);
  // No rank will copy any more: what is not whole is given up.
  void EndCollecting(SnapshotEdge* edge);
  // The newest whole one goes to disk, whether it is due or not. The last step also when writing it
  // failed before, a few times.
  void WantNewest(SnapshotEdge* edge);
  // All that is on its way to disk but not being committed.
  void GiveUpUncommitted(const std::string& why, SnapshotEdge* edge);
  // Forgets what lies in memory at this step and after: a holder did not have what it promised.
  void Distrust(uint64_t step, SnapshotEdge* edge);
  void Tick(SnapshotEdge* edge);

  // ---- Events. Errors: Aborted when the step was given up; FailedPrecondition "stale ...".
  absl::Status Report(const SnapshotReport& report, SnapshotEdge* edge);
  // All that the node holds now, of any job: what it does not name any more is gone.
  void Hold(const std::string& node, const google::protobuf::RepeatedPtrField<HeldSnapshot>& all,
            SnapshotEdge* edge);
  absl::Status Copied(const std::string& node, const SnapshotReplicated& report,
                      SnapshotEdge* edge);
  void Lose(const std::string& node, SnapshotEdge* edge);
  void Staged(const CheckpointStaged& event, SnapshotEdge* edge);
  absl::Status Persisted(const std::string& node, const ShardsPersisted& report,
                         SnapshotEdge* edge);
  // Whether it is on disk now.
  absl::StatusOr<bool> Committed(const CommitFinished& event, SnapshotEdge* edge);

  // Somebody else has put a step on disk.
  void CommittedElsewhere(uint64_t step, SnapshotEdge* edge);

  // ---- Questions.
  // Step, kept steps and committed step of the control word.
  void FillControl(Control* control) const;
  // The newest snapshot that a generation can start from: every rank's part is in the memory of a
  // node that is there. Null: none.
  struct Restorable {
    uint64_t step = 0;
    MemoryRecord record;
    // Of each part the holders that can be counted on most: those that answer and stay; else those
    // that answer; else all that are registered.
    std::vector<SnapshotSource> sources;
  };
  std::optional<Restorable> Newest(const SnapshotEdge& edge) const;
  // What to make durable of the newest whole one.
  std::optional<MemoryRecord> record() const;
  // Step of the newest one that all ranks copied; 0: none.
  uint64_t newest_whole() const;
  // On the way to disk.
  bool Pending() const;
  bool Committing(uint64_t after) const;  // one of a step after this
  // Whether what only this node holds is not on disk yet, or is being read from it.
  bool NeedsNode(const std::string& node, const SnapshotEdge& edge) const;
  std::string DescribePending() const;
  // All of it, for tests that compare.
  std::string DebugString() const;

 private:
  enum class Disk { kNo, kQueued, kStaging, kPersisting, kCommitting, kFailed, kDone };
  struct Part {
    std::string path;
    bool copy = false;
  };
  struct Snapshot {
    std::shared_ptr<const SnapshotOrigin> origin;
    std::optional<TrainingState> state;
    std::vector<std::map<std::string, Part>> holders;  // by rank, then node
    bool whole = false;                                // every rank has copied
    Disk disk = Disk::kNo;
    absl::Time not_before = absl::InfinitePast();  // of staging
    std::string staging;
    std::vector<std::string> writers;  // by rank: the node that writes its shards
    std::map<uint32_t, ShardsPersisted> shards;
    absl::Time since;             // of persisting
    std::set<std::string> copiers;  // nodes that were asked for copies and have not answered
    absl::Time copying_since;

    bool OnItsWay() const { return disk >= Disk::kQueued && disk <= Disk::kCommitting; }
  };
  using Steps = std::map<uint64_t, Snapshot>;

  bool Due(uint64_t step) const;
  bool IsMine(const std::string& node) const;
  Snapshot* At(uint64_t step);
  // The one that a node says it holds a part of; null when it is not wanted.
  Snapshot* Claimed(const HeldSnapshot& held);
  void Forget(const std::string& node);
  void MoveWriters(const std::string& node, SnapshotEdge* edge);
  static bool HasAllParts(const Snapshot& snapshot);
  Steps::iterator Find(uint64_t generation, uint64_t step, Disk disk);
  void BecomeWhole(uint64_t step, SnapshotEdge* edge);
  void StartCopies(uint64_t step, Snapshot* snapshot, SnapshotEdge* edge);
  void Pump(SnapshotEdge* edge);
  bool SendPersist(uint64_t step, Snapshot* snapshot, SnapshotEdge* edge);
  void GiveUp(uint64_t step, const std::string& why, SnapshotEdge* edge);
  static bool Complete(const Snapshot& snapshot, const SnapshotEdge& edge);
  static bool Doubled(const Snapshot& snapshot);
  std::set<uint64_t> Needed() const;
  // Drops what is not needed and tells the agents.
  void Prune(SnapshotEdge* edge);

  JobSpec spec_;
  absl::Duration persist_timeout_;
  std::shared_ptr<const SnapshotOrigin> origin_;  // of the generation that runs, or ran last
  Steps steps_;
  uint64_t committed_ = 0;
  int retries_ = 0;       // of writing the last step
  uint64_t aborted_ = 0;  // newest step given up in this generation
  std::map<std::string, std::string> told_;  // the newest KeepSnapshots of each agent
};

}  // namespace moesaic
