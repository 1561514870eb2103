// A whole cluster in one thread, fixed by a seed: a coordinator that dies and starts again from its
// records, agents and their memory of snapshots, ranks that train, a checkpoint folder, a person,
// and faults. After everything that happens the invariants of docs/design/invariants.md are checked
// (M1, M2, M5, C7, and what memory may hold); at the end faults stop and every job must end well.
//
// What training computes is a name: the content of a step is (the content of the step before, the
// generation that took it). So two generations that both take step 7 differ in what they save.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "scheduler/state/cluster_state.h"
#include "tests/scheduler/state/model/chance.h"

namespace moesaic {

class ClusterModel {
 public:
  // `talks`: the log is kept.
  ClusterModel(uint64_t seed, bool talks);
  // What was broken, in words; empty: nothing.
  std::string Run();
  const std::vector<std::string>& log() const { return log_; }
  uint64_t events() const { return events_; }
  uint64_t moves() const { return moves_; }  // of experts

 private:
  struct Held {
    HeldSnapshot held;
    uint64_t content = 0;
  };
  struct Agent {
    std::string name;
    int life = 0;  // of the process; odd: it lives
    absl::Time stopped_until = absl::InfinitePast();  // SIGSTOP
    absl::Time cut_until = absl::InfinitePast();      // its network hears and says nothing
    uint64_t stream = 0;                              // 0: not registered
    absl::Time out_of_contact = absl::InfiniteFuture();
    absl::Time inbox, outbox;  // one stream keeps its order
    std::string running_job;
    uint64_t running = 0;
    bool ending = false;
    std::vector<GenerationEnded> ended;
    std::map<std::string, Held> memory;  // by path
    std::string preempted;

    bool lives() const { return life % 2 == 1; }
    std::string incarnation() const { return name + "#" + std::to_string(life); }
  };
  struct Standing {
    std::string incarnation;
    absl::Time renewed;
  };
  struct Rank {
    std::string agent;
    std::string arena;
    std::string incarnation;
    bool alive = false;
    bool asked = false;  // Ready
    absl::Time stuck_until = absl::InfinitePast();
    Control control;
    std::optional<uint64_t> buffers[2];
    std::deque<SnapshotReport> reports;  // the front one is being said
    std::optional<SnapshotReport> newest;
  };
  // One mpirun and its ranks.
  struct Generation {
    std::string job;
    uint64_t number = 0;
    std::string token;
    double orphan_grace = 0;
    std::vector<std::string> hosts;  // the head first
    std::set<std::string> started;
    std::vector<Rank> ranks;
    std::shared_ptr<const RestoreSources> restore;
    bool trains = false;
    bool over = false;
    int exit_code = 0;
    std::optional<uint32_t> failed_rank;
    uint64_t step = 0;
    uint64_t content = 0;
    uint64_t last_step = 0, every = 0, memory_every = 0;
    StoredPlacement placement;        // where its experts lie
    std::optional<uint64_t> to_copy;  // ranks that have no snapshot of this step yet:
    std::set<uint32_t> copying;
    bool stopping = false;
  };
  using GenerationPtr = std::shared_ptr<Generation>;
  struct Content {
    uint64_t parent = 0;
    uint64_t step = 0;
  };
  struct Stored {
    uint64_t content = 0;
    bool damaged = false;
  };
  // What the model knows of a job beside its status.
  struct JobFacts {
    JobSpec spec;
    std::map<uint64_t, Stored> disk;
    std::map<std::string, std::pair<uint64_t, uint64_t>> staging;  // name -> (generation, step)
    uint64_t newest_generation = 0;
    uint64_t acknowledged = 0;  // newest commit that is durable
    uint32_t min_nodes = 0;
    bool stopped = false;
    bool damaged = false;
    bool fatal = false;  // a rank ended with a code that no restart helps
    uint32_t failures = 0;
    bool budget = false;  // may be spent
    absl::Time too_few_since = absl::InfiniteFuture();
    uint64_t attempt = 0;
  };
  // A message that may be said again.
  struct Recorded {
    Event event;
    uint64_t life = 0;  // of the coordinator that heard it
  };

  // cluster_model.cc: the coordinator and what it asks for.
  void StartCoordinator();
  void CrashCoordinator();
  absl::Status Handle(const Event& event, bool may_record = false);
  void Do(const Action& action);
  void Do(const SendToAgent& action);
  void Do(const PushControl& action);
  void Do(const AnswerReady& action);
  void Enqueue(const Action& action);
  void Background();
  void Work(const Action& action);
  RestoreChosen Choose(const ChooseRestore& action);
  CheckpointStaged Stage(const StageCheckpoint& action);
  CommitFinished Commit(const CommitCheckpoint& action);
  void TickForEver();

  // cluster_model_agents.cc: agents, ranks.
  void StartAgent(Agent* agent);
  void KillAgent(Agent* agent);
  void Connect(Agent* agent);
  void BreakStream(Agent* agent, bool heard);
  void RenewForEver(Agent* agent, int life);
  void AgentDo(Agent* agent, absl::Duration delay, std::function<void()> act);
  void Say(Agent* agent, std::function<Event()> event,
           std::function<void(absl::Status)> answer = {});
  void Deliver(Agent* agent, const std::shared_ptr<const AgentCommand>& command);
  void Obey(Agent* agent, const AgentCommand& command);
  void Persist(Agent* agent, const PersistSnapshot& persist);
  void Replicate(Agent* agent, const ReplicateSnapshot& replicate);
  void Keep(Agent* agent, const KeepSnapshots& keep);
  void StartGenerationAt(Agent* agent, const class StartGeneration& start);
  void EndGenerationAt(Agent* agent, absl::Duration delay);
  GenerationPtr Find(const std::string& job, uint64_t number);
  bool Frozen(const Agent& agent) const;

  // cluster_model_ranks.cc
  void Launch(const GenerationPtr& generation);
  void Break(const GenerationPtr& generation, int code, std::optional<uint32_t> rank);
  void Call(const GenerationPtr& generation, uint32_t rank, std::function<Event()> event,
            std::function<void(absl::Status)> answer);
  void AskTable(const GenerationPtr& generation, uint32_t rank);
  void Restore(const GenerationPtr& generation, uint32_t rank);
  void AskReady(const GenerationPtr& generation, uint32_t rank);
  void Train(const GenerationPtr& generation);
  bool CanStep(const Generation& generation) const;
  void CopyAll(const GenerationPtr& generation);
  bool Copy(Generation* generation, uint32_t rank);
  void Settle(Generation* generation, uint32_t rank);
  void AddLoad(const Generation& generation, TrainingState* state);
  bool NoBuffer(Generation* generation, uint32_t rank);
  void Report(const GenerationPtr& generation, uint32_t rank, const std::string& phase);
  void SayReports(const GenerationPtr& generation, uint32_t rank);
  void TakeControl(const GenerationPtr& generation, uint32_t rank, const Control& control);
  void Reconnect(const GenerationPtr& generation);
  void MaybeFinish(const GenerationPtr& generation);
  WorkerIdentity Identity(const Generation& generation, uint32_t rank) const;

  // cluster_model_faults.cc: faults, people, and the end.
  void PlanFaults();
  void Submit(const std::string& job);
  void Fault();
  void Calm();
  void ReplayStale();
  bool IsStale(const Recorded& recorded) const;
  void HurtRank();

  // cluster_model_checks.cc
  void CheckStart(const SendToAgent& action);
  void CheckRestore(const JobFacts& facts, const RankTable& table);
  void CheckControl(const PushControl& action);
  void CheckCommit(const CommitCheckpoint& action, uint64_t content);
  void CheckStates();
  void CheckEnd();
  bool IsOnPath(uint64_t earlier, uint64_t later) const;
  bool Registered(const std::string& agent) const;
  bool Ended() const;
  void Fail(const std::string& why);
  template <typename... Args>
  void Log(const char* format, const Args&... args);

  Chance chance_;
  Timeline timeline_;
  const bool talks_;
  std::vector<std::string> log_;
  std::string broken_;
  uint64_t events_ = 0;
  uint64_t moves_ = 0;

  ClusterOptions options_;
  std::unique_ptr<ClusterState> state_;  // null: the coordinator is dead
  uint64_t coordinator_life_ = 0;
  bool crash_at_next_ = false;
  std::map<std::string, JobRecord> records_;
  std::map<std::string, NodeRecord> node_records_;
  std::map<std::string, Standing> registered_;  // as the coordinator sees it
  std::deque<Action> background_;
  bool background_busy_ = false;
  bool disk_full_ = false;
  bool calm_ = false;
  uint64_t next_name_ = 1;

  std::map<std::string, Agent> agents_;
  std::vector<GenerationPtr> generations_;  // not over, or not yet gone
  std::map<std::string, JobFacts> jobs_;
  std::vector<Content> contents_{{}};
  std::vector<Recorded> recorded_;
};

}  // namespace moesaic
