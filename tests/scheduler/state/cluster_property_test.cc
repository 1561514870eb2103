// Thousands of random histories: agents come, go, fall silent; workers start, report, fail; the
// coordinator dies; old messages come again. After every event the invariants of
// docs/design/invariants.md must hold.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "tests/scheduler/state/cluster_fixture.h"

namespace moesaic {
namespace {

class History {
 public:
  explicit History(uint64_t seed) : random_(seed) {
    const uint32_t min_nodes = 1 + Draw(2);
    spec_ = SmallJob("a", min_nodes, min_nodes + Draw(2), 1 + Draw(2));
    spec_.mutable_train()->set_steps(20);
    spec_.mutable_health()->set_max_failures(1000);
    spec_.mutable_health()->set_max_no_progress_generations(1000);
  }

  void Run(int events) {
    ASSERT_TRUE(c_.Do(JobSubmitted{spec_, "auto"}).ok());
    for (int i = 0; i < events && !HasEnded(c_.Status("a").state()); ++i) {
      Anything();
      CheckM1();
      CheckM5();
      if (::testing::Test::HasFailure()) return;
    }
  }

  // From any point: enough nodes and no more failures lead to success.
  void RunToTheEnd() {
    for (int i = 0; i < 400 && !HasEnded(c_.Status("a").state()); ++i) {
      for (const std::string name : {"n1", "n2", "n3"}) {
        if (!c_.incarnations.contains(name)) JoinNode(name);
      }
      HelpAlong();
      CheckM1();
      if (::testing::Test::HasFailure()) return;
    }
    EXPECT_EQ(c_.Status("a").state(), SUCCEEDED) << c_.Status("a").DebugString();
  }

 private:
  uint32_t Draw(uint32_t n) { return static_cast<uint32_t>(random_() % n); }

  // What the agents do: a generation lives on a node from Start to the End that the node reports.
  void Absorb() {
    for (; absorbed_ < c_.actions.size(); ++absorbed_) {
      const SendToAgent* send = std::get_if<SendToAgent>(&c_.actions[absorbed_]);
      if (send == nullptr) continue;
      if (send->command.has_start()) {
        const auto& start = send->command.start();
        if (start.generation() != newest_) {
          // M1: strictly increasing, over restarts of the coordinator too.
          EXPECT_GT(start.generation(), newest_);
          // M1: no node that is alive still runs another one.
          for (const auto& [node, generation] : running_) {
            if (c_.incarnations.contains(node)) {
              EXPECT_EQ(generation, 0u) << node << " when " << start.generation() << " starts";
            }
          }
          newest_ = start.generation();
        }
        running_[send->agent] = start.generation();
      }
    }
  }

  void CheckM1() {
    Absorb();
    EXPECT_GE(c_.durable["a"].status().generation(), newest_) << "used before it was durable";
    EXPECT_EQ(c_.durable["a"].status().state(), c_.Status("a").state());
  }

  void CheckM5() {
    if (c_.incarnations.size() >= spec_.elastic().nodes().min()) return;
    const JobStatus& status = c_.Status("a");
    if (status.reason().find("to come back") != std::string::npos) return;  // to be adopted
    EXPECT_NE(status.state(), RUNNING) << status.DebugString();
    EXPECT_NE(status.state(), STARTING);
    if (status.state() == WAITING) {
      EXPECT_FALSE(status.reason().empty());
    }
  }

  void JoinNode(const std::string& name) {
    // A node that is back runs nothing, unless it is the same agent on a new stream.
    running_[name] = 0;
    EXPECT_TRUE(c_.Join(name, 2, "i" + std::to_string(++incarnation_)).ok());
  }

  void Anything() {
    const std::string node = "n" + std::to_string(1 + Draw(3));
    const JobStatus status = c_.Status("a");
    const uint32_t rank = status.ranks() == 0 ? 0 : Draw(status.ranks());
    switch (Draw(16)) {
      case 0:
        c_.incarnations.contains(node) ? (void)c_.Leave(node) : JoinNode(node);
        break;
      case 1:
        if (!c_.incarnations.contains(node)) JoinNode(node);
        break;
      case 2:
        c_.Live(absl::Milliseconds(100 + Draw(5000)));
        break;
      case 3:
        Silence(node);
        break;
      case 4:
        RestartCoordinator();
        break;
      case 5:
        EndOn(node, std::vector<int>{0, 1, 75, 86, 87, 137}[Draw(6)]);
        break;
      case 6:
        ReplayStale(rank);
        break;
      default:
        HelpAlong();
        break;
    }
  }

  void Silence(const std::string& node) {
    if (!c_.incarnations.contains(node)) return;
    const std::string incarnation = c_.incarnations[node];
    c_.incarnations.erase(node);
    c_.Live(absl::Seconds(6));
    EXPECT_TRUE(absl::IsFailedPrecondition(c_.Do(AgentRenewed{node, incarnation}))) << "M2";
  }

  void RestartCoordinator() {
    std::vector<JobRecord> records;
    for (const auto& [name, record] : c_.durable) records.push_back(record);
    c_.state = ClusterState(c_.options, records, c_.now);
    // The durable copy of a job that was live says so until the new coordinator acts.
    c_.durable["a"].mutable_status()->set_state(c_.Status("a").state());
    const auto agents = c_.incarnations;
    c_.incarnations.clear();
    for (const auto& [name, incarnation] : agents) {
      AgentRegistration registration;
      registration.set_slots(2);
      registration.set_cores(2);
      if (running_[name] != 0) {
        registration.set_running_job("a");
        registration.set_running_generation(running_[name]);
      }
      EXPECT_TRUE(c_.Do(AgentJoined{name, incarnation, registration}).ok());
      c_.incarnations[name] = incarnation;
    }
  }

  void EndOn(const std::string& node, int code) {
    if (!c_.incarnations.contains(node) || running_[node] == 0) return;
    GenerationEnded report;
    report.set_job("a");
    report.set_generation(running_[node]);
    report.set_exit_code(code);
    running_[node] = 0;
    EXPECT_TRUE(c_.Do(GenerationEnd{node, c_.incarnations[node], report}).ok());
  }

  // M2: whatever an older generation or incarnation says is refused and changes nothing.
  void ReplayStale(uint32_t rank) {
    const std::string before = c_.Status("a").SerializeAsString();
    if (c_.Status("a").generation() > 1) {
      WorkerIdentity old = c_.Worker("a", rank);
      old.set_generation(old.generation() - 1);
      old.set_token(c_.tokens[{"a", old.generation()}]);
      ReadyRequest ready;
      *ready.mutable_worker() = old;
      StepReport step;
      *step.mutable_worker() = old;
      step.set_step(1000);
      step.mutable_metrics()->set_step(1000);
      SnapshotReport snapshot;
      *snapshot.mutable_worker() = old;
      snapshot.set_step(1000);
      ExpectRefused(RankTableAsked{old});
      ExpectRefused(RankReady{ready});
      ExpectRefused(StepReported{step});
      ExpectRefused(SnapshotReported{snapshot});
      ShardsPersisted shards;
      shards.set_job("a");
      shards.set_generation(old.generation());
      for (const auto& [agent, incarnation] : c_.incarnations) {
        ExpectRefused(ShardsReported{agent, incarnation, shards});
      }
      ExpectRefused(CommitFinished{"a", old.generation(), 1000, absl::OkStatus(), "stale"});
    }
    GenerationEnded end;
    end.set_job("a");
    end.set_generation(c_.Status("a").generation());
    ExpectRefused(GenerationEnd{"n1", "never seen", end});
    ExpectRefused(AgentLost{"n1", "never seen", ""});
    EXPECT_EQ(before, c_.Status("a").SerializeAsString());
  }

  void ExpectRefused(const Event& event) {
    EXPECT_TRUE(absl::IsFailedPrecondition(c_.Do(event)));
    EXPECT_TRUE(c_.last.records.empty());
    EXPECT_TRUE(c_.last.actions.empty());
  }

  // The next thing that a healthy cluster would do.
  void HelpAlong() {
    Absorb();
    const JobStatus status = c_.Status("a");
    switch (status.state()) {
      case PLANNING:
        EXPECT_TRUE(c_.Restore("a", status.committed_step()).ok());
        return;
      case STARTING:
        c_.AllReady("a");
        return;
      case RUNNING:
      case DRAINING:
        Train();
        return;
      case ABORTING:
        for (const auto& [node, incarnation] : std::map(c_.incarnations)) EndOn(node, 137);
        FinishSave();
        return;
      default:
        c_.Live(absl::Seconds(1));
        EndOrphans();
        return;
    }
  }

  // Agents obey the kills that they were sent.
  void EndOrphans() {
    for (const auto& [node, incarnation] : std::map(c_.incarnations)) EndOn(node, 137);
  }

  void Train() {
    if (c_.state.rank_table("a") == nullptr) return;
    if (FinishSave()) return;
    const uint64_t step =
        std::max(c_.Status("a").last_step().step(), c_.Status("a").committed_step());
    const bool alive = running_[c_.state.rank_table("a")->ranks(0).node()] != 0;
    if (!alive) {
      EndOrphans();
      c_.Live(absl::Seconds(1));
    } else if (step >= spec_.train().steps() || c_.state.control("a")->stop()) {
      if (c_.state.control("a")->committed_step() < step) {
        for (uint32_t r = 0; r < c_.Status("a").ranks(); ++r)
          c_.Snapshot("a", r, step).IgnoreError();
      }
      const std::string head = c_.state.rank_table("a")->ranks(0).node();
      EndOn(head, step >= spec_.train().steps() ? 0 : kWorkerPlanned);
    } else {
      for (uint32_t r = 0; r < c_.Status("a").ranks(); ++r) {
        EXPECT_TRUE(c_.Step("a", r, step + 1 + Draw(3)).ok());
      }
      if (Draw(3) == 0) {
        const uint64_t at = c_.Status("a").last_step().step();
        for (uint32_t r = 0; r < c_.Status("a").ranks(); ++r) c_.Snapshot("a", r, at).IgnoreError();
      }
    }
  }

  // One event of a save that is under way, if there is one.
  bool FinishSave() {
    for (; seen_ < c_.actions.size(); ++seen_) {
      const Action action = c_.actions[seen_];
      if (std::holds_alternative<StageCheckpoint>(action)) {
        ++seen_;
        c_.Staged(Draw(8) == 0 ? absl::ResourceExhaustedError("disk full") : absl::OkStatus())
            .IgnoreError();
        return true;
      }
      if (const SendToAgent* send = std::get_if<SendToAgent>(&action);
          send != nullptr && send->command.has_persist()) {
        ++seen_;
        const PersistSnapshot& persist = send->command.persist();
        for (const RankArena& arena : persist.arenas()) {
          ShardsPersisted shards;
          shards.set_job("a");
          shards.set_generation(persist.generation());
          shards.set_step(persist.step());
          shards.set_staging(persist.staging());
          shards.set_rank(arena.rank());
          if (Draw(20) == 0) shards.set_error("no space left on device");
          if (!c_.incarnations.contains(send->agent)) continue;
          c_.Do(ShardsReported{send->agent, c_.incarnations[send->agent], shards}).IgnoreError();
        }
        return true;
      }
      if (std::holds_alternative<CommitCheckpoint>(action)) {
        ++seen_;
        const uint64_t before = c_.Status("a").committed_step();
        const auto& commit = std::get<CommitCheckpoint>(action);
        EXPECT_GT(commit.step, before) << "C7: only newer steps are committed";
        c_.Do(CommitFinished{"a", commit.generation, commit.step, absl::OkStatus(), "p"})
            .IgnoreError();
        return true;
      }
    }
    return false;
  }

  std::mt19937_64 random_;
  JobSpec spec_;
  ClusterFixture c_;
  std::map<std::string, uint64_t> running_;
  uint64_t newest_ = 0;
  int incarnation_ = 0;
  size_t absorbed_ = 0;
  size_t seen_ = 0;
};

TEST(ClusterProperty, M1M2M5HoldInRandomHistories) {
  for (uint64_t seed = 1; seed <= 3000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    History history(seed);
    history.Run(60);
    if (HasFailure()) return;
    history.RunToTheEnd();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace moesaic
