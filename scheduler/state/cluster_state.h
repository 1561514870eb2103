// ClusterState: the rules of agents, jobs and generations, as (event, now) -> (state, actions). No
// threads, sockets, clock, log or randomness inside; the coordinator is this, a mutex, a durable
// store and an edge. Why it is so: docs/design/generations.md.
//
// A job goes QUEUED | WAITING -> PLANNING -> STARTING -> RUNNING -> DRAINING | ABORTING -> PLANNING
// ... -> SUCCEEDED | FAILED | CANCELLED. Generations are numbered 1, 2, ... and a number is durable
// before it is used; the next generation starts only when no process of the last is left on a live
// node and its last snapshot is committed or given up. So at most one runs, and at most one
// commits.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "scheduler/state/events.h"
#include "scheduler/state/planner.h"

namespace moesaic {

// Exit codes of workers (docs/exit-codes.md).
inline constexpr int kWorkerPlanned = 75;
inline constexpr int kWorkerWatchdog = 86;
inline constexpr int kWorkerStale = 87;
inline constexpr int kWorkerMismatch = 88;
inline constexpr int kWorkerCorrupt = 89;
inline constexpr int kWorkerNonFinite = 90;
inline constexpr int kWorkerMissing = 127;  // mpirun or the worker is not there

// Exit codes of jobs.
inline constexpr int kJobFailed = 1;
inline constexpr int kJobBadConfig = 2;
inline constexpr int kJobCancelled = 7;
inline constexpr int kJobBadCheckpoint = 8;
inline constexpr int kJobGaveUp = 93;

struct ClusterOptions {
  absl::Duration lease_ttl = absl::Seconds(5);
  // How long arrivals are waited for when there are nodes enough but more could be used.
  absl::Duration join_wait = absl::Seconds(2);
  // Agents that take longer to write a snapshot have failed to.
  absl::Duration persist_timeout = absl::Minutes(30);
  // A node that this many failures were blamed on within the window gets no more ranks for a while.
  // 0: never.
  uint32_t blame_failures = 3;
  absl::Duration blame_window = absl::Minutes(10);
  // Secret of a generation: random, never the same twice. Empty in tests: "token-1", "token-2", ...
  std::function<std::string()> draw_token = {};
};

// A job that has started or may yet; ended ones stay until their name is submitted again.
// Thread-compatible: the coordinator's mutex guards it.
class ClusterState {
 public:
  // `records`: what a former life made durable. A generation that was live then is over: agents
  // that still run it are told to kill it, and its job goes on with the next number.
  ClusterState(ClusterOptions options, const std::vector<JobRecord>& records, absl::Time now,
               const std::vector<NodeRecord>& node_records = {});

  // Errors of Outcome.status: FailedPrecondition "stale ..." for a sender of another generation or
  // incarnation, PermissionDenied for a wrong token, NotFound, AlreadyExists, InvalidArgument. An
  // event that is refused has no effect.
  Outcome Handle(const Event& event, absl::Time now);

  // Null when there is none of that name.
  const JobStatus* status(absl::string_view job) const;
  const JobSpec* spec(absl::string_view job) const;
  // Of the generation that is starting or running; null when there is none.
  const RankTable* rank_table(absl::string_view job) const;
  const Control* control(absl::string_view job) const;
  std::vector<std::string> jobs() const;
  // Registered nodes, and others that are remembered for their failures or their cordon; by name.
  std::vector<NodeStatus> nodes(absl::Time now) const;

 private:
  struct Node {
    std::string incarnation;
    AgentRegistration registration;
    absl::Time lease_until;
    absl::Time joined;
    // The generation whose processes may be on it: (job, number); ("", 0) when it is free.
    std::string busy_job;
    uint64_t busy_generation = 0;
  };

  struct RankState {
    std::string incarnation;
    bool ready = false;
    ReadyRequest hashes;
    StepReport progress;
    absl::Time progressed;
  };

  struct Snapshot {
    enum Phase { kCollecting, kQueued, kStaging, kPersisting, kCommitting } phase = kCollecting;
    std::map<uint32_t, uint32_t> buffers;  // of the ranks that have reported
    std::string staging;
    std::map<uint32_t, ShardsPersisted> shards;
    absl::Time since;
  };

  // Why a generation is being ended, where that was decided here.
  struct Cause {
    std::string text;
    bool fatal = false;  // no restart helps
    int exit_code = kJobFailed;
  };

  struct Generation {
    uint64_t number = 0;
    std::string head;
    std::string token;
    std::string layout;
    std::vector<std::string> nodes;
    RankTable table;
    std::vector<RankState> ranks;
    std::vector<std::string> trajectory_changes;
    std::set<std::string> unclean;  // live agents that may have processes of it
    std::map<uint64_t, Snapshot> snapshots;
    Control control;
    absl::Time started;
    bool was_ready = false;
    bool draining_for_nodes = false;
    bool killing = false;
    bool lost_node = false;  // with the snapshots of its ranks
    uint64_t committed_at_start = 0;
    std::optional<Cause> cause;
    std::optional<int> exit_code;  // of mpirun
    std::string first_failure;
  };

  struct Job {
    JobRecord record;
    uint64_t attempt = 0;  // of ChooseRestore
    std::unique_ptr<Generation> live;
    std::deque<absl::Time> failures;
    uint32_t no_progress = 0;
    absl::Time not_before = absl::InfinitePast();  // no plan earlier
    double trained_seconds = 0;                    // of the steps reported, for the mean rate
    uint64_t trained_tokens = 0;
    uint64_t sequence = 0;

    const std::string& name() const { return record.status().job(); }
    JobState state() const { return record.status().state(); }
    const JobSpec& spec() const { return record.spec(); }
    bool ended() const { return state() >= SUCCEEDED; }
  };

  // cluster_state.cc: agents, jobs, planning.
  absl::Status On(const JobSubmitted& event);
  absl::Status On(const StopRequested& event);
  absl::Status On(const AgentJoined& event);
  absl::Status On(const AgentRenewed& event);
  absl::Status On(const AgentLost& event);
  absl::Status On(const RestoreChosen& event);
  absl::Status On(const ResizeRequested& event);
  absl::Status On(const NodeChangeRequested& event);
  absl::Status On(const AgentPreempted& event);
  absl::Status On(const CopiesReported& event);
  absl::Status On(const SnapshotRequested& event);
  absl::Status On(const Tick& event);
  absl::StatusOr<Node*> FindNode(const std::string& agent, const std::string& incarnation);
  void DropNode(const std::string& agent, const std::string& reason);
  std::vector<PlanNode> UsableNodes(const Job* job, bool only_free) const;
  bool MoreMayJoin(const Job& job, size_t nodes) const;
  void TryPlan(Job* job);
  void WaitForNodes(Job* job, const absl::Status& refusal);
  bool WaitForOldGeneration(Job* job);
  void Wait(Job* job, JobState state, const std::string& reason);
  void StartGeneration(Job* job, const GenerationPlan& plan, const RestoreChosen& restore);
  void DrainForMoreNodes(Job* job);

  // cluster_generations.cc: workers, health, the end of a generation.
  absl::Status On(const RankTableAsked& event);
  absl::Status On(const RankReady& event);
  absl::Status On(const StepReported& event);
  absl::Status On(const GenerationEnd& event);
  absl::StatusOr<Job*> CheckWorker(const WorkerIdentity& worker);
  void AllReady(Job* job);
  void TakeMetrics(Job* job, const StepMetrics& metrics);
  void CheckHealth(Job* job);
  void CheckProgress(Job* job);
  void EndLive(Job* job, Cause cause, bool now);
  void KillLive(Job* job, bool now);
  void FinishIfClean(Job* job);
  void FinishGeneration(Job* job);
  void FinishFailed(Job* job, const Generation& ended);
  static std::optional<Cause> FatalExit(const Generation& ended);
  bool BudgetSpent(Job* job, const Generation& ended, std::string* why);

  // cluster_snapshots.cc: from the ranks' arenas to a committed checkpoint.
  absl::Status On(const SnapshotReported& event);
  absl::Status On(const CheckpointStaged& event);
  absl::Status On(const ShardsReported& event);
  absl::Status On(const CommitFinished& event);
  absl::StatusOr<Snapshot*> FindSnapshot(const std::string& job, uint64_t generation, uint64_t step,
                                         Snapshot::Phase phase);
  void PumpSnapshots(Job* job);
  void SendPersist(Job* job, uint64_t step, const Snapshot& snapshot);
  void GiveUpSnapshot(Job* job, uint64_t step, const std::string& why);
  void GiveUpSnapshotsOf(Job* job, const std::string& agent, const std::string& why);
  void GiveUpSlow(Job* job);
  void GiveUpUnfinished(Job* job, const std::string& why);

  // What leaves this class; all append to out_.
  void Transition(Job* job, JobState state, const std::string& reason);
  void EndJob(Job* job, JobState state, int exit_code, const std::string& reason);
  void Note(Job* job, const std::string& text);
  void Publish(Job* job, JobEvent event);
  void Save(const Job& job);
  void Send(const std::string& agent, AgentCommand command);
  void PushControlOf(Job* job);

  Job* FindJob(absl::string_view name);
  const Job* FindJob(absl::string_view name) const;

  ClusterOptions options_;
  std::map<std::string, Node> nodes_;
  std::map<std::string, std::unique_ptr<Job>> jobs_;
  uint64_t next_order_ = 1;
  absl::Time now_;
  Outcome out_;
};

// Whether a job in this state will change no more.
inline bool HasEnded(JobState state) { return state >= SUCCEEDED; }

// Takes the same time whatever the strings hold.
bool EqualInConstantTime(absl::string_view a, absl::string_view b);

}  // namespace moesaic
