// Changes of nodes, snapshots in memory, adoption and blame.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/scheduler/state/cluster_fixture.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

// Snapshots every few steps in memory, to disk every 50.
struct TwoNodes : ClusterFixture {
  explicit TwoNodes(uint32_t min_nodes = 1, uint32_t max_nodes = 2)
      : TwoNodes(JobOn(min_nodes, max_nodes)) {}
  explicit TwoNodes(const JobSpec& spec) {
    JoinAt("n1");
    JoinAt("n2");
    EXPECT_TRUE(Do(JobSubmitted{spec, "auto"}).ok());
    Live(absl::Seconds(2));
    EXPECT_TRUE(Restore("a").ok());
    AllReady("a");
    EXPECT_EQ(Status("a").state(), RUNNING);
  }
  static JobSpec JobOn(uint32_t min_nodes, uint32_t max_nodes) {
    JobSpec spec = SmallJob("a", min_nodes, max_nodes, 1);
    spec.mutable_checkpoint()->set_every_steps(50);
    return spec;
  }
  void JoinAt(const std::string& agent, uint64_t running = 0) {
    AgentRegistration registration;
    registration.set_slots(1);
    registration.set_cores(1);
    registration.set_host(agent);
    registration.set_address(agent + ":1");
    registration.set_arena_dir("/dev/shm/" + agent);
    if (running != 0) {
      registration.set_running_job("a");
      registration.set_running_generation(running);
    }
    EXPECT_TRUE(Do(AgentJoined{agent, "i-" + agent, registration}).ok());
    incarnations[agent] = "i-" + agent;
  }
  void Remember(uint64_t step) {
    for (uint32_t r = 0; r < Status("a").ranks(); ++r) {
      SnapshotReport report;
      *report.mutable_worker() = Worker("a", r);
      report.set_step(step);
      if (r == 0) report.mutable_state()->set_step(step);
      EXPECT_TRUE(Do(SnapshotReported{report}).ok());
    }
  }
  void CopyAll(uint64_t step, const std::vector<std::string>& nodes = {"n1", "n2"}) {
    for (const std::string& node : nodes) {
      const ReplicateSnapshot asked = NewestCommand(node, AgentCommand::kReplicate).replicate();
      SnapshotReplicated report;
      report.set_job("a");
      report.set_generation(asked.generation());
      report.set_step(step);
      for (const uint32_t rank : asked.ranks()) {
        HeldSnapshot* copy = report.add_copies();
        copy->set_step(step);
        copy->set_rank(rank);
        copy->set_copy(true);
        copy->set_path("copy");
      }
      EXPECT_TRUE(Do(CopiesReported{node, incarnations[node], report}).ok());
    }
  }
  void Restart() {
    std::vector<JobRecord> records;
    for (const auto& [name, record] : durable) records.push_back(record);
    state = ClusterState(options, records, now);
    incarnations.clear();
  }
};

TEST(ClusterElastic, LostNodesRanksGoOnFromAPeersMemory) {
  TwoNodes c;
  c.Remember(7);
  EXPECT_EQ(c.Status("a").memory_step(), 7u);
  c.CopyAll(7);
  EXPECT_TRUE(c.Leave("n1").ok());
  EXPECT_TRUE(c.End("a", "n2", 137).ok());
  c.Live(absl::Milliseconds(200));
  ASSERT_EQ(c.Status("a").state(), STARTING) << c.Status("a").reason();
  const RankTable* table = c.state.rank_table("a");
  EXPECT_EQ(table->restore().step(), 7u);
  EXPECT_EQ(table->restore_path(), "");
  EXPECT_EQ(table->restore().snapshots_size(), 2);
  for (const auto& source : table->restore().snapshots()) EXPECT_EQ(source.node(), "n2");
}

TEST(ClusterElastic, LostNodeWithoutCopiesFallsBackToTheDisk) {
  TwoNodes c;
  c.Remember(7);
  EXPECT_TRUE(c.Leave("n1").ok());
  EXPECT_TRUE(c.End("a", "n2", 137).ok());
  c.Live(absl::Milliseconds(200));
  EXPECT_EQ(c.Status("a").state(), PLANNING);
}

TEST(ClusterElastic, LostSourceIsNotTriedAgain) {
  TwoNodes c;
  c.Remember(7);
  EXPECT_TRUE(c.End("a", "n1", 137).ok());
  EXPECT_TRUE(c.End("a", "n2", 137).ok());
  ASSERT_EQ(c.state.rank_table("a")->restore().step(), 7u);
  EXPECT_TRUE(c.End("a", "n1", kExitSnapshotLost).ok());
  EXPECT_TRUE(c.End("a", "n2", kExitSnapshotLost).ok());
  EXPECT_EQ(c.Status("a").state(), PLANNING) << "from the disk";
}

TEST(ClusterElastic, OnlyARankThatBrokeIsBlamedOnItsNode) {
  for (const auto& [code, blamed] : {std::pair(137, 1u), {int{kExitSnapshotLost}, 0u}}) {
    TwoNodes c;
    GenerationEnded report;
    report.set_job("a");
    report.set_generation(1);
    report.set_exit_code(code);
    report.set_failed_rank(1);
    EXPECT_TRUE(c.Do(GenerationEnd{"n1", c.incarnations["n1"], report}).ok());
    EXPECT_TRUE(c.End("a", "n2", 137).ok());
    EXPECT_EQ(c.state.nodes(c.now)[0].blamed_failures(), 0u);
    EXPECT_EQ(c.state.nodes(c.now)[1].blamed_failures(), blamed) << code;
  }
}

TEST(ClusterElastic, DrainMovesOffThenCordonsWithoutUsingTheBudget) {
  TwoNodes c;
  ChangeNodeRequest drain;
  drain.set_node("n2");
  drain.set_change(ChangeNodeRequest::DRAIN);
  EXPECT_TRUE(c.Do(NodeChangeRequested{drain}).ok());
  EXPECT_EQ(c.Status("a").state(), DRAINING);
  EXPECT_TRUE(c.Newest<PushControl>().control.stop());
  c.Remember(9);
  EXPECT_TRUE(c.End("a", "n1", kExitPlannedRestart).ok());
  EXPECT_TRUE(c.End("a", "n2", kExitPlannedRestart).ok());
  ASSERT_EQ(c.Status("a").state(), STARTING) << "the disk follows while it runs";
  EXPECT_EQ(c.state.rank_table("a")->restore().step(), 9u);
  EXPECT_EQ(c.Status("a").ranks(), 1u);
  EXPECT_EQ(c.Status("a").restarts(), 0u);
  EXPECT_EQ(c.Status("a").resizes(), 1u);
  EXPECT_EQ(c.state.nodes(c.now)[1].state(), NodeStatus::DRAINING) << "only it holds rank 1's part";
  EXPECT_TRUE(c.Staged().ok());
  for (uint32_t rank = 0; rank < 2; ++rank) {
    EXPECT_TRUE(c.Shards(rank == 0 ? "n1" : "n2", rank).ok());
  }
  EXPECT_TRUE(c.Committed().ok());
  EXPECT_EQ(c.Status("a").committed_step(), 9u);
  EXPECT_EQ(c.state.nodes(c.now)[1].state(), NodeStatus::CORDONED);
  EXPECT_TRUE(c.durable_nodes["n2"].cordoned());
}

TEST(ClusterElastic, PreemptedAgentIsToldToLeaveOnceNothingNeedsIt) {
  TwoNodes c;
  EXPECT_TRUE(c.Do(AgentPreempted{"n2", c.incarnations["n2"], "SIGTERM"}).ok());
  c.Remember(9);
  c.CopyAll(9, {"n1"});  // nothing new is put on n2
  EXPECT_TRUE(c.End("a", "n1", kExitPlannedRestart).ok());
  EXPECT_TRUE(c.End("a", "n2", kExitPlannedRestart).ok());
  EXPECT_EQ(c.Status("a").state(), STARTING);
  EXPECT_EQ(c.NewestCommand("n2", AgentCommand::kLeave).leave().reason(), "SIGTERM");
}

TEST(ClusterElastic, ResizeChangesOnlyWhereThePlanDiffers) {
  TwoNodes c;
  EXPECT_TRUE(c.Do(ResizeRequested{"a", 1, 4}).ok());
  EXPECT_EQ(c.Status("a").state(), RUNNING);
  EXPECT_EQ(c.Status("a").max_nodes(), 4u);
  EXPECT_TRUE(c.Do(ResizeRequested{"a", 1, 1}).ok());
  EXPECT_EQ(c.Status("a").state(), DRAINING);
  EXPECT_TRUE(absl::IsInvalidArgument(c.Do(ResizeRequested{"a", 3, 2})));
}

TEST(ClusterElastic, RestartedCoordinatorAdoptsWhatRuns) {
  TwoNodes c;
  c.Restart();
  EXPECT_EQ(c.Status("a").state(), RUNNING);
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("to come back"));
  c.JoinAt("n1", 1);
  EXPECT_TRUE(c.NewestCommand("n1", AgentCommand::kWelcome).welcome().adopted());
  c.JoinAt("n2", 1);
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("generation 1"));
  EXPECT_TRUE(c.Step("a", 0, 8).ok());
  EXPECT_EQ(c.Status("a").restarts(), 0u);
}

TEST(ClusterElastic, NodeThatDoesNotComeBackAfterARestartIsLost) {
  TwoNodes c;
  c.Restart();
  c.JoinAt("n1", 1);
  c.Live(absl::Seconds(9));
  EXPECT_EQ(c.Status("a").state(), ABORTING);
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("n2"));
}

// What an agent holds of its generation's own snapshots.
HeldSnapshot Own(const std::string& node, uint64_t generation, uint32_t rank, uint64_t step) {
  HeldSnapshot held;
  held.set_job("a");
  held.set_generation(generation);
  held.set_step(step);
  held.set_rank(rank);
  held.set_ranks(2);
  held.set_path(node + "/" + std::to_string(step));
  if (rank == 0) held.mutable_state()->set_step(step);
  return held;
}

TEST(ClusterElastic, NothingIsDroppedBeforeARegistrationIsHeardWhole) {
  TwoNodes c;
  c.Restart();
  for (const uint32_t rank : {0u, 1u}) {
    const std::string node = rank == 0 ? "n1" : "n2";
    AgentJoined joined{node, "i-" + node, {}};
    joined.registration.set_slots(1);
    joined.registration.set_running_job("a");
    joined.registration.set_running_generation(1);
    *joined.registration.add_held() = Own(node, 1, rank, 7);
    *joined.registration.add_held() = Own(node, 1, rank, 8);
    EXPECT_TRUE(c.Do(joined).ok());
    for (const AgentCommand& command : c.CommandsTo(node)) {
      if (!command.has_keep()) continue;
      bool newest = false;
      for (const auto& kept : command.keep().kept()) newest |= kept.step() == 8;
      EXPECT_TRUE(newest) << command.ShortDebugString();
    }
  }
  EXPECT_EQ(c.Status("a").memory_step(), 8u);
}

TEST(ClusterElastic, PartOfARankWhoseNodeIsGoneHoldsNothingUp) {
  TwoNodes c;
  EXPECT_TRUE(c.Leave("n1").ok());
  EXPECT_TRUE(c.Snapshot("a", 0, 50).ok());
  EXPECT_TRUE(absl::IsAborted(c.Snapshot("a", 1, 50)));
  EXPECT_TRUE(c.End("a", "n2", 137).ok());
  c.Live(absl::Seconds(1));
  EXPECT_NE(c.Status("a").state(), ABORTING) << c.Status("a").next();
}

TEST(ClusterElastic, ReportOfARankIsAskedForAgainUntilItsNodeIsBack) {
  TwoNodes c;
  c.Restart();
  EXPECT_TRUE(absl::IsUnavailable(c.Snapshot("a", 1, 50)));
  c.JoinAt("n1", 1);
  c.JoinAt("n2", 1);
  EXPECT_TRUE(c.Snapshot("a", 1, 50).ok());
}

TEST(ClusterElastic, LastStepIsWrittenAgainFromMemoryWhenTheDiskWasFull) {
  TwoNodes c;
  c.Remember(100);
  EXPECT_TRUE(c.End("a", "n1", 0).ok());
  EXPECT_TRUE(c.End("a", "n2", 0).ok());
  EXPECT_TRUE(c.Staged(absl::ResourceExhaustedError("disk full")).ok());
  EXPECT_EQ(c.Status("a").state(), DRAINING);
  c.Live(absl::Seconds(2));
  EXPECT_EQ(c.Count<StageCheckpoint>(), 2);
  EXPECT_TRUE(c.Staged().ok());
  c.AllShards();
  EXPECT_TRUE(c.Committed().ok());
  EXPECT_EQ(c.Status("a").state(), SUCCEEDED);
  EXPECT_EQ(c.Status("a").generation(), 1u);
}

TEST(ClusterElastic, StopAfterARestartWaitsForTheMemoryThatIsToBeSaved) {
  TwoNodes c;
  c.Remember(9);
  EXPECT_TRUE(c.Do(ResizeRequested{"a", 1, 1}).ok());
  EXPECT_TRUE(c.End("a", "n1", kExitPlannedRestart).ok());
  EXPECT_TRUE(c.Leave("n2").ok());
  c.durable["a"].clear_live();
  c.durable["a"].set_stop(STOP_GRACEFUL);
  c.durable["a"].mutable_memory()->set_step(9);
  c.durable["a"].mutable_memory()->set_generation(1);
  c.durable["a"].mutable_memory()->set_ranks(1);
  c.durable["a"].mutable_status()->set_state(WAITING);
  c.Restart();
  c.Live(absl::Seconds(1));
  EXPECT_EQ(c.Status("a").state(), WAITING) << c.Status("a").reason();
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("step 9"));
  c.Live(absl::Seconds(9));
  EXPECT_EQ(c.Status("a").state(), CANCELLED) << "nobody came back with it";
}

TEST(ClusterElastic, C1_HoldersThatComeBackAfterARestartSaveTheStep) {
  TwoNodes c;
  EXPECT_TRUE(c.Do(StopRequested{"a", false}).ok());
  c.Remember(9);
  EXPECT_TRUE(c.End("a", "n1", kExitPlannedRestart).ok());
  EXPECT_TRUE(c.End("a", "n2", kExitPlannedRestart).ok());
  EXPECT_TRUE(c.Staged().ok());
  c.Restart();
  c.Live(absl::Seconds(1));
  EXPECT_FALSE(c.Status("a").state() == CANCELLED) << c.Status("a").reason();
  const int staged = c.Count<StageCheckpoint>();
  uint32_t rank = 0;
  for (const std::string node : {"n1", "n2"}) {
    AgentJoined joined{node, "i-" + node, {}};
    joined.registration.set_slots(1);
    joined.registration.set_cores(1);
    *joined.registration.add_held() = Own(node, 1, rank++, 9);
    EXPECT_TRUE(c.Do(joined).ok());
    c.incarnations[node] = joined.incarnation;
  }
  c.Live(absl::Seconds(1));
  ASSERT_GT(c.Count<StageCheckpoint>(), staged) << c.Status("a").reason();
  EXPECT_TRUE(c.Staged().ok());
  EXPECT_TRUE(c.Shards("n1", 0).ok());
  EXPECT_TRUE(c.Shards("n2", 1).ok());
  EXPECT_TRUE(c.Committed().ok());
  EXPECT_EQ(c.Status("a").state(), CANCELLED);
  EXPECT_EQ(c.Status("a").committed_step(), 9u);
}

TEST(ClusterElastic, NodeWithManyFailuresIsCordonedForAWhile) {
  ClusterFixture c;
  NodeBook book({}, {});
  EXPECT_FALSE(book.Blame("n1", c.now));
  EXPECT_FALSE(book.Blame("n1", c.now));
  EXPECT_EQ(book.Blame("n1", c.now), absl::Seconds(10));
  EXPECT_TRUE(book.WhyNot("n1", c.now + absl::Seconds(9)));
  EXPECT_FALSE(book.WhyNot("n1", c.now + absl::Seconds(10)));
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(book.Blame("n1", c.now));
  EXPECT_EQ(book.Blame("n1", c.now), absl::Seconds(20));
}

// Two nodes train with a load that is far from even; each step takes ten seconds.
struct Unbalanced : TwoNodes {
  using TwoNodes::TwoNodes;
  void Train(uint64_t step) {
    for (uint32_t r = 0; r < 2; ++r) {
      StepReport report;
      *report.mutable_worker() = Worker("a", r);
      report.set_step(step);
      report.set_phase("step");
      if (r == 0) {
        report.mutable_metrics()->set_step(step);
        report.mutable_metrics()->set_generation(Status("a").generation());
        report.mutable_metrics()->set_seconds(10);
      }
      EXPECT_TRUE(Do(StepReported{report}).ok());
    }
    for (uint32_t r = 0; r < 2; ++r) {
      SnapshotReport report;
      *report.mutable_worker() = Worker("a", r);
      report.set_step(step);
      report.set_buffer(static_cast<uint32_t>(step % 2));
      if (r == 0) *report.mutable_state() = StateAt(step);
      EXPECT_TRUE(Do(SnapshotReported{report}).ok());
    }
    Live(absl::Seconds(10));
  }
  // Experts 0, 1 and 2, which lie on rank 0, take most.
  TrainingState StateAt(uint64_t step) const {
    const RankTable& table = *state.rank_table("a");
    TrainingState training;
    training.set_step(step);
    for (uint32_t layer = 0; layer < 2; ++layer) {
      LayerLoad* load = training.add_expert_load();
      load->set_layer(layer);
      for (const double taken : {30, 30, 30, 5, 5, 5}) load->add_tokens(taken);
    }
    StoredPlacement* stored = training.mutable_placement();
    stored->set_ranks(2);
    stored->set_expert_size(2);
    stored->set_ranks_per_node(1);
    for (const ExpertHolders& holders : table.placement()) {
      stored->add_holders(static_cast<uint32_t>(holders.ranks_size()));
      for (const auto rank : holders.ranks()) stored->add_holders(static_cast<uint32_t>(rank));
    }
    return training;
  }
  std::vector<int> Held(uint32_t rank) const {  // experts of the first layer
    std::vector<int> experts;
    for (const ExpertHolders& holders : state.rank_table("a")->placement()) {
      if (holders.layer() == 0 && holders.ranks(0) == rank) {
        experts.push_back(static_cast<int>(holders.expert()));
      }
    }
    return experts;
  }
  void StopWhereAsked(uint64_t step) {
    for (uint32_t r = 0; r < 2; ++r) {
      StepReport report;
      *report.mutable_worker() = Worker("a", r);
      report.set_step(step);
      report.set_phase("stopped");
      EXPECT_TRUE(Do(StepReported{report}).ok());
    }
    EXPECT_TRUE(End("a", "n1", 75).ok());
    EXPECT_TRUE(End("a", "n2", 75).ok());
  }
  int Notes(const std::string& start) const {
    int notes = 0;
    for (const Action& action : actions) {
      const PublishEvent* event = std::get_if<PublishEvent>(&action);
      notes += event != nullptr && event->event.note().starts_with(start);
    }
    return notes;
  }
};

TEST(Rebalance, ExpertsOfARunningJobMoveOnceTheirLoadHasBeenUnevenForLong) {
  Unbalanced cluster;
  EXPECT_EQ(cluster.Held(0), (std::vector<int>{0, 1, 2}));
  uint64_t step = 0;
  while (cluster.Status("a").state() == RUNNING && step < 20) cluster.Train(++step);
  // A minute after the first snapshot was there, and not before.
  EXPECT_EQ(step, 7u);
  ASSERT_EQ(cluster.Status("a").state(), DRAINING);
  EXPECT_THAT(cluster.Status("a").reason(), HasSubstr("to move experts: for 1m"));
  EXPECT_THAT(cluster.Status("a").reason(), HasSubstr("1.71 of the mean"));

  cluster.StopWhereAsked(step);
  ASSERT_EQ(cluster.Status("a").state(), STARTING) << cluster.Status("a").reason();
  EXPECT_EQ(cluster.Status("a").restarts(), 0u);
  EXPECT_EQ(cluster.Status("a").resizes(), 1u);
  EXPECT_EQ(cluster.Notes("experts moved"), 1);
  const std::vector<int> held = cluster.Held(0);
  EXPECT_LT(std::count_if(held.begin(), held.end(), [](int e) { return e < 3; }), 3);

  // The load stays what it is: they stay where they are.
  cluster.AllReady("a");
  while (cluster.Status("a").state() == RUNNING && step < 99) cluster.Train(++step);
  EXPECT_EQ(step, 99u);
  EXPECT_EQ(cluster.Status("a").generation(), 2u);
}

TEST(Rebalance, NotWhereTheJobForbidsItOrLittleIsLeft) {
  for (const bool forbidden : {true, false}) {
    JobSpec spec = TwoNodes::JobOn(2, 2);
    if (forbidden) spec.mutable_elastic()->set_rebalance_ratio(0);
    if (!forbidden) spec.mutable_train()->set_steps(8);  // as many as the wait takes
    Unbalanced cluster(spec);
    for (uint64_t step = 1; step < (forbidden ? 40 : 8); ++step) {
      cluster.Train(step);
      EXPECT_EQ(cluster.Status("a").state(), RUNNING) << step;
    }
  }
}

TEST(Rebalance, ARestartAfterAFailureKeepsExpertsWhereTheyWere) {
  Unbalanced cluster;
  cluster.Train(1);
  EXPECT_TRUE(cluster.End("a", "n1", 139, "rank 0 was killed").ok());
  EXPECT_TRUE(cluster.End("a", "n2", 139).ok());
  cluster.Live(absl::Seconds(1));
  ASSERT_EQ(cluster.Status("a").generation(), 2u);
  EXPECT_EQ(cluster.Held(0), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(cluster.Notes("experts moved"), 0);
}

TEST(Stragglers, SlowRankIsNamedAfterFiveSteps) {
  StragglerWatch watch(3, 1.5);
  for (int step = 0; step < 5; ++step) {
    EXPECT_TRUE(watch.Slow().empty());
    watch.Add(0, 1);
    watch.Add(1, 2);
    watch.Add(2, 1.1);
  }
  const auto slow = watch.Slow();
  ASSERT_EQ(slow.size(), 1u);
  EXPECT_EQ(slow[0].rank, 1u);
  EXPECT_NEAR(slow[0].ratio, 2 / 1.1, 1e-9);
}

}  // namespace
}  // namespace moesaic
