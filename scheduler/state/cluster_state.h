// ClusterState: the rules of agents, jobs and generations, as (event, now) -> (state, actions). No
// threads, sockets, clock, log or randomness inside; the coordinator is this, a mutex, a durable
// store and an edge. Why it is so: docs/design/generations.md.
//
// A job goes QUEUED | WAITING -> PLANNING -> STARTING -> RUNNING -> DRAINING | ABORTING -> PLANNING
// ... -> SUCCEEDED | FAILED | CANCELLED. Generations are numbered 1, 2, ... and a number is durable
// before it is used; the next generation starts only when no process of the last is left on a node
// that answers. So at most one runs. What goes to disk lies on the path that it started from: so at
// most one line of steps is committed.
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
#include "base/exit_codes.h"
#include "scheduler/state/events.h"
#include "scheduler/state/job_snapshots.h"
#include "scheduler/state/node_book.h"
#include "scheduler/state/planner.h"
#include "scheduler/state/rebalance.h"
#include "scheduler/state/stragglers.h"

namespace moesaic {

struct ClusterOptions {
  absl::Duration lease_ttl = absl::Seconds(5);
  // How long arrivals are waited for when there are nodes enough but more could be used; and after
  // a failure.
  absl::Duration join_wait = absl::Seconds(2);
  absl::Duration failure_wait = absl::Milliseconds(200);
  // Agents that take longer to write a snapshot have failed to.
  absl::Duration persist_timeout = absl::Minutes(30);
  // How long agents go on without a coordinator, unless their job says otherwise.
  absl::Duration orphan_grace = absl::Seconds(60);
  // A coordinator that restarts waits for the agents of a live generation for lease_ttl and this.
  absl::Duration adoption_wait = absl::Seconds(3);
  // A generation that was asked to stop has this long, or three steps, before it counts as hung.
  absl::Duration stop_timeout = absl::Seconds(10);
  BlameRules blame = {};
  // Secret of a generation: random, never the same twice. Empty in tests: "token-1", "token-2", ...
  std::function<std::string()> draw_token = {};
};

// A job that has started or may yet; ended ones stay until their name is submitted again.
// Thread-compatible: the coordinator's mutex guards it.
class ClusterState final : private SnapshotEdge {
 public:
  // `records`, `node_records`: what a former life made durable. A generation that was live then is
  // adopted when all its agents come back with it; until then its job's reason says so.
  ClusterState(ClusterOptions options, const std::vector<JobRecord>& records, absl::Time now,
               const std::vector<NodeRecord>& node_records = {});

  // Errors of Outcome.status: FailedPrecondition "stale ..." for a sender of another generation or
  // incarnation, PermissionDenied for a wrong token, NotFound, AlreadyExists, InvalidArgument. An
  // event that is refused has no effect.
  Outcome Handle(const Event& event, absl::Time now);

  // Null when there is none of that name.
  const JobStatus* status(absl::string_view job) const;
  const JobSpec* spec(absl::string_view job) const;
  // Whether `writer` (its rank and incarnation aside) is of the job's live generation: NotFound,
  // FailedPrecondition "stale generation ...", PermissionDenied for a wrong token.
  absl::Status CheckGeneration(const WorkerIdentity& writer) const;
  // Of the generation that is starting or running; null when there is none.
  const RankTable* rank_table(absl::string_view job) const;
  const Control* control(absl::string_view job) const;
  std::vector<std::string> jobs() const;  // by order of submission
  // Registered nodes, and others that are remembered for their failures or their cordon; by name.
  std::vector<NodeStatus> nodes(absl::Time now) const;
  // All that events may change, for tests that compare.
  std::string DebugString() const;

 private:
  struct Node {
    std::string incarnation;
    AgentRegistration registration;
    absl::Time renewed;  // its lease
    absl::Time joined;
    // The generation whose processes may be on it: (job, number); ("", 0) when it is free.
    std::string busy_job;
    uint64_t busy_generation = 0;
    std::string leaving;  // not empty: its host goes away, and why
    bool told_to_leave = false;
  };

  struct RankState {
    std::string incarnation;
    bool ready = false;
    ReadyRequest hashes;
    StepReport progress;
    absl::Time progressed;
  };

  // Why a generation is being ended, where that was decided here.
  struct Cause {
    std::string text;
    bool fatal = false;    // no restart helps
    bool planned = false;  // not a failure: a change of nodes, or of the coordinator
    int exit_code = kExitJobFailed;
    std::vector<std::string> blamed = {};  // nodes
  };

  struct Generation {
    GenerationRecord record;  // what is durable of it
    std::vector<RankState> ranks;
    std::vector<std::string> trajectory_changes;
    std::set<std::string> unclean;  // nodes that are there and may have processes of it
    std::set<std::string> awaited;  // after a restart of the coordinator: not back yet
    std::map<std::string, absl::Time> early;  // nodes that are clean before the head is
    std::string early_failure;
    Control control;
    absl::Time started;
    absl::Time await_until;
    absl::Time stop_asked = absl::InfiniteFuture();
    bool killing = false;
    uint64_t started_at_step = 0;
    std::optional<Cause> cause;
    std::optional<int> exit_code;  // of mpirun
    std::optional<uint32_t> failed_rank;
    std::string first_failure;
    std::optional<StragglerWatch> stragglers;
    double step_seconds = 0;  // of the steps reported
    uint64_t steps = 0;
    absl::Duration start_took;  // until all ranks were ready

    uint64_t number() const { return record.number(); }
    const RankTable& table() const { return record.table(); }
    bool has(const std::string& node) const;
    bool was_ready() const { return record.was_ready(); }
  };

  struct Job {
    Job(const JobSpec& spec, absl::Duration persist_timeout)
        : snapshots(spec, persist_timeout), rebalance(RebalanceRulesOf(spec)) {}

    JobRecord record;
    uint64_t attempt = 0;  // of ChooseRestore
    std::unique_ptr<Generation> live;
    JobSnapshots snapshots;
    RebalanceWatch rebalance;
    bool move_experts = false;            // the next generation places them by the newest load
    std::vector<std::string> last_nodes;  // of the last generation, in the order of ranks
    std::vector<SpareNode> spares;        // of the newest plan
    bool verify_content = false;  // the next restore comes from a checkpoint that was read whole
    bool verified = false;                // the last one did
    // Holders of its memory may come back until then.
    absl::Time recall_until = absl::InfinitePast();
    absl::Time settle_from;               // arrivals are waited for from here on
    absl::Duration settle;                // for so long
    absl::Time reconsider = absl::InfiniteFuture();  // whether other nodes would do better
    double trained_seconds = 0;                      // of the steps reported, for the mean rate
    double trained_tokens = 0;

    const std::string& name() const { return record.status().job(); }
    JobState state() const { return record.status().state(); }
    const JobSpec& spec() const { return record.spec(); }
    bool ended() const { return state() >= SUCCEEDED; }
    bool stopping() const { return live != nullptr && !live->record.stopping().empty(); }
  };

  // Where a generation starts.
  struct RestorePoint {
    TrainingState state;  // step 0: a new start
    std::string path;     // empty: not on disk
    std::vector<SnapshotSource> sources;
  };

  // cluster_state.cc: jobs, time, what leaves.
  absl::Status On(const JobSubmitted& event);
  absl::Status On(const StopRequested& event);
  absl::Status On(const ResizeRequested& event);
  absl::Status On(const Tick& event);
  absl::Status On(const Stalled& event);
  void StopAtStep(Job* job, const std::string& why);

  // cluster_nodes.cc: agents and nodes, adoption.
  absl::Status On(const AgentJoined& event);
  absl::Status On(const AgentRenewed& event);
  absl::Status On(const AgentLost& event);
  absl::Status On(const AgentPreempted& event);
  absl::Status On(const NodeChangeRequested& event);
  absl::StatusOr<Node*> FindNode(const std::string& agent, const std::string& incarnation);
  // The cluster's, or that of the job on it when it is shorter.
  absl::Duration LeaseOf(const Node& node) const;
  bool Silent(const Node& node) const;
  static void FreeAfter(const GenerationEnded& ended, Node* node);
  bool TakeBack(const AgentJoined& event, Node* node);
  void Recall(Job* job);
  void AdoptIfComplete(Job* job);
  void CheckAwaited(Job* job);
  void DropNode(const std::string& agent, const std::string& reason);
  void MoveOff(const std::string& agent);
  void CheckDeadlines();
  void SettleLeavers();
  bool SettleLeaver(const std::string& name);
  void Blame(const std::string& node, const std::string& why);

  // cluster_planning.cc: from waiting to started, and changes of nodes.
  absl::Status On(const RestoreChosen& event);
  std::vector<PlanNode> UsableNodes(const Job* job, bool only_free) const;
  absl::StatusOr<GenerationPlan> Plan(const Job& job, std::vector<PlanNode> nodes,
                                      const TrainingState* restored, bool move_experts) const;
  bool MoreMayJoin(const Job& job, size_t nodes) const;
  void TryPlan(Job* job);
  std::optional<JobSnapshots::Restorable> FromMemory(const Job& job) const;
  bool WaitForMemory(Job* job);
  void WaitForNodes(Job* job, const absl::Status& refusal);
  bool WaitForOldGeneration(Job* job);
  void Wait(Job* job, JobState state, const std::string& reason);
  void TakeRestored(Job* job, const TrainingState& state);
  void Start(Job* job, const GenerationPlan& plan, const RestorePoint& restore);
  void SendStart(Job* job, const GenerationPlan& plan);
  void AdmitReaders(const Job& job);
  static SnapshotOrigin OriginOf(const Job& job);
  void ReconsiderAll(absl::Time when);
  void ConsiderChange(Job* job);

  // cluster_rebalance.cc: experts move while nodes stay.
  static RebalanceRules RebalanceRulesOf(const JobSpec& spec);
  std::vector<PlanNode> LiveNodes(const Job& job) const;
  std::optional<RebalanceFacts> BalanceOf(const Job& job, const TrainingState& state) const;
  void ConsiderRebalance(Job* job);

  // cluster_generations.cc: workers, health.
  absl::Status On(const RankTableAsked& event);
  absl::Status On(const RankReady& event);
  absl::Status On(const StepReported& event);
  void EndIfStopped(Job* job);
  absl::StatusOr<Job*> CheckWorker(const WorkerIdentity& worker);
  void AllReady(Job* job);
  void TakeMetrics(Job* job, const StepMetrics& metrics);
  void TakeStepTime(Job* job, const StepReport& report);
  void CheckHealth(Job* job);
  void CheckProgress(Job* job);
  absl::Duration HangLimit(const Job& job, const StepReport& suspect) const;
  static size_t Suspect(const Generation& live);

  // cluster_endings.cc: how a generation ends, and what follows.
  absl::Status On(const GenerationEnd& event);
  void EndOn(Job* job, const std::string& agent, const GenerationEnded& report);
  void EndLive(Job* job, Cause cause, bool now);
  void KillLive(Job* job, bool now);
  void FinishIfClean(Job* job);
  void RecordCommit(Job* job, uint64_t step, const std::string& path);
  bool MustWaitForDisk(Job* job);
  void FinishGeneration(Job* job);
  void FinishFailed(Job* job, const Generation& ended);
  void BlameFor(const Job& job, const Generation& ended);
  static std::optional<Cause> FatalExit(const Job& job, const Generation& ended);
  bool Progressed(const Job& job, const Generation& ended) const;
  std::optional<std::string> BudgetSpent(const Job& job, const Generation& ended) const;

  // cluster_snapshots.cc: events of snapshots and commits.
  absl::Status On(const SnapshotReported& event);
  absl::Status On(const CopiesReported& event);
  absl::Status On(const CheckpointStaged& event);
  absl::Status On(const ShardsReported& event);
  absl::Status On(const CommitFinished& event);
  absl::Status On(const StepCommitted& event);
  // The control word and the durable record of memory follow the snapshots.
  void FollowSnapshots(Job* job);

  // cluster_status.cc: what people see.
  void DescribeJob(Job* job);
  std::string NextAction(const Job& job) const;
  std::string WhySpare(const Job& job, const std::string& node) const;

  // What leaves this class; all append to out_.
  void Transition(Job* job, JobState state, const std::string& reason);
  void EndJob(Job* job, JobState state, int exit_code, const std::string& reason);
  void Note(Job* job, const std::string& text);
  void Publish(Job* job, JobEvent event);
  void Save(Job* job);
  void Send(const std::string& agent, AgentCommand command);
  void PushControlOf(Job* job);

  // SnapshotEdge.
  void Do(Action action) override;
  void Tell(const std::string& job, const std::string& note) override;
  const AgentRegistration* Agent(const std::string& node) const override;
  bool Answers(const std::string& node) const override;
  bool Stays(const std::string& node) const override;
  absl::Time Now() const override { return now_; }

  Job* FindJob(absl::string_view name);
  const Job* FindJob(absl::string_view name) const;
  std::vector<Job*> JobsInOrder() const;

  ClusterOptions options_;
  NodeBook book_;
  std::map<std::string, Node> nodes_;
  std::set<std::string> leavers_;  // nodes that may be on their way out
  std::map<std::string, std::unique_ptr<Job>> jobs_;
  uint64_t next_order_ = 1;
  uint64_t drawn_tokens_ = 0;
  absl::Time now_;
  Outcome out_;
};

// Whether a job in this state will change no more.
inline bool HasEnded(JobState state) { return state >= SUCCEEDED; }

// Takes the same time whatever the strings hold.
bool EqualInConstantTime(absl::string_view a, absl::string_view b);

}  // namespace moesaic
