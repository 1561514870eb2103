#include "scheduler/state/cluster_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/scheduler/state/cluster_fixture.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

TEST(ClusterState, TakesAJobThroughItsLife) {
  ClusterFixture c;
  c.RunOnOneNode();
  EXPECT_EQ(c.Status("a").generation(), 1u);
  EXPECT_TRUE(c.Step("a", 0, 100).ok());
  c.SnapshotAll("a", 100);
  EXPECT_TRUE(c.End("a", "n1", 0).ok());
  EXPECT_EQ(c.Status("a").state(), DRAINING) << "the last checkpoint is not committed yet";
  EXPECT_TRUE(c.Staged().ok());
  c.AllShards();
  EXPECT_TRUE(c.Committed().ok());
  EXPECT_EQ(c.Status("a").state(), SUCCEEDED);
  EXPECT_EQ(c.Status("a").exit_code(), 0);
  EXPECT_EQ(c.Status("a").committed_step(), 100u);
  EXPECT_TRUE(c.CommandsTo("n1").back().has_forget());
}

TEST(ClusterState, NumberOfAGenerationIsDurableBeforeItIsUsed) {
  ClusterFixture c;
  ASSERT_TRUE(c.Join("n1", 2).ok());
  ASSERT_TRUE(c.Do(JobSubmitted{SmallJob("a", 1, 1, 2), "auto"}).ok());
  ASSERT_TRUE(c.Restore("a").ok());
  ASSERT_EQ(c.last.records.size(), 1u);
  EXPECT_EQ(c.last.records[0].status().generation(), 1u);
  EXPECT_EQ(c.last.records[0].status().state(), STARTING);
  EXPECT_TRUE(c.CommandsTo("n1").back().has_start());
}

TEST(ClusterState, ReadyWaitsForEveryRankAndComparesHashes) {
  ClusterFixture c;
  ASSERT_TRUE(c.Join("n1", 2).ok());
  ASSERT_TRUE(c.Do(JobSubmitted{SmallJob("a", 1, 1, 2), "auto"}).ok());
  ASSERT_TRUE(c.Restore("a").ok());
  EXPECT_TRUE(c.Ready("a", 0, "one").ok());
  EXPECT_EQ(c.Count<AnswerReady>(), 0);
  EXPECT_TRUE(c.Ready("a", 1, "other").ok());
  const AnswerReady answer = c.Newest<AnswerReady>();
  EXPECT_TRUE(absl::IsAborted(answer.status));
  EXPECT_THAT(std::string(answer.status.message()),
              HasSubstr("binary: ranks 0 differ from ranks 1"));
  EXPECT_TRUE(c.End("a", "n1", kExitMismatch).ok());
  EXPECT_EQ(c.Status("a").state(), FAILED);
  EXPECT_EQ(c.Status("a").exit_code(), 1);
}

TEST(ClusterState, FailureRestartsFromTheNewestCommit) {
  ClusterFixture c;
  c.RunOnOneNode();
  c.Save("a", 20);
  EXPECT_TRUE(c.End("a", "n1", 137, "rank 1 was killed by signal 9").ok());
  EXPECT_EQ(c.Status("a").state(), PLANNING);
  EXPECT_EQ(c.Status("a").restarts(), 1u);
  EXPECT_THAT(c.Status("a").last_failure(), HasSubstr("rank 1 was killed by signal 9"));
  EXPECT_TRUE(c.Restore("a", 20).ok());
  EXPECT_EQ(c.Status("a").generation(), 2u);
  EXPECT_EQ(c.state.rank_table("a")->restore_path(), "checkpoints/step-20");
}

TEST(ClusterState, ExitZeroBeforeTheLastStepIsAFailure) {
  ClusterFixture c;
  c.RunOnOneNode();
  EXPECT_TRUE(c.End("a", "n1", 0).ok());
  EXPECT_EQ(c.Status("a").restarts(), 1u);
  EXPECT_THAT(c.Status("a").last_failure(), HasSubstr("before the last step"));
}

TEST(ClusterState, FinishesACompleteSnapshotOfADeadGeneration) {
  ClusterFixture c;
  c.RunOnOneNode();
  c.SnapshotAll("a", 30);
  EXPECT_TRUE(c.End("a", "n1", 139, "rank 0: segmentation fault").ok());
  EXPECT_EQ(c.Status("a").state(), ABORTING);
  EXPECT_TRUE(c.Staged().ok());
  c.AllShards();
  EXPECT_EQ(c.Count<ChooseRestore>(), 1) << "no plan while a commit is open (C7)";
  EXPECT_TRUE(c.Committed().ok());
  EXPECT_EQ(c.Count<ChooseRestore>(), 2);
  EXPECT_EQ(c.Status("a").committed_step(), 30u);
}

TEST(ClusterState, GivesUpAnIncompleteSnapshotOfADeadGeneration) {
  ClusterFixture c;
  c.RunOnOneNode();
  EXPECT_TRUE(c.Snapshot("a", 0, 30).ok());
  EXPECT_TRUE(c.End("a", "n1", 139).ok());
  EXPECT_EQ(c.Status("a").state(), PLANNING);
  EXPECT_EQ(c.Count<StageCheckpoint>(), 0);
}

TEST(ClusterState, FailedSnapshotDoesNotStopTraining) {
  ClusterFixture c;
  c.RunOnOneNode();
  c.SnapshotAll("a", 10);
  EXPECT_TRUE(c.Staged().ok());
  EXPECT_TRUE(c.Shards("n1", 0).ok());
  EXPECT_TRUE(c.Shards("n1", 1, "no space left on device").ok());
  EXPECT_EQ(c.Status("a").state(), RUNNING);
  EXPECT_EQ(c.state.control("a")->aborted_snapshot_step(), 10u);
  EXPECT_EQ(c.Newest<DiscardStaging>().staging, "staging-10");
  c.Save("a", 20);
  EXPECT_EQ(c.state.control("a")->committed_step(), 20u);
}

TEST(ClusterState, RankThatCannotCopyGivesTheSnapshotUp) {
  ClusterFixture c;
  c.RunOnOneNode();
  EXPECT_TRUE(c.Snapshot("a", 0, 10).ok());
  SnapshotReport report;
  *report.mutable_worker() = c.Worker("a", 1);
  report.set_step(10);
  report.set_error("/dev/shm is full");
  EXPECT_TRUE(c.Do(SnapshotReported{report}).ok());
  EXPECT_EQ(c.state.control("a")->aborted_snapshot_step(), 10u);
  EXPECT_EQ(c.Status("a").state(), RUNNING);
}

TEST(ClusterState, SecondSnapshotWaitsForTheFirst) {
  ClusterFixture c;
  c.RunOnOneNode();
  c.SnapshotAll("a", 10, 0);
  c.SnapshotAll("a", 20, 1);
  EXPECT_EQ(c.Count<StageCheckpoint>(), 1);
  EXPECT_TRUE(c.Staged().ok());
  c.AllShards();
  EXPECT_TRUE(c.Committed().ok());
  EXPECT_EQ(c.Count<StageCheckpoint>(), 2);
  EXPECT_TRUE(c.Staged().ok());
  const PersistSnapshot persist = c.NewestCommand("n1", AgentCommand::kPersist).persist();
  EXPECT_EQ(persist.step(), 20u);
  EXPECT_EQ(persist.arenas(0).path(), "/dev/shm/n1/a/g1-r0.1");
}

TEST(ClusterState, GracefulStopSavesAndCancels) {
  ClusterFixture c;
  c.RunOnOneNode();
  EXPECT_TRUE(c.Step("a", 0, 12).ok());
  EXPECT_TRUE(c.Do(StopRequested{"a", false}).ok());
  EXPECT_TRUE(c.Newest<PushControl>().control.stop());
  EXPECT_EQ(c.Status("a").state(), DRAINING);
  c.SnapshotAll("a", 12);
  EXPECT_TRUE(c.End("a", "n1", kExitPlannedRestart).ok());
  EXPECT_TRUE(c.Staged().ok());
  c.AllShards();
  EXPECT_TRUE(c.Committed().ok());
  EXPECT_EQ(c.Status("a").state(), CANCELLED);
  EXPECT_EQ(c.Status("a").exit_code(), kExitCancelled);
  EXPECT_EQ(c.Status("a").restarts(), 0u);
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("the newest checkpoint is step 12"));
}

TEST(ClusterState, StopNowKillsWithoutSaving) {
  ClusterFixture c;
  c.RunOnOneNode();
  c.SnapshotAll("a", 12);
  EXPECT_TRUE(c.Do(StopRequested{"a", true}).ok());
  EXPECT_TRUE(c.CommandsTo("n1").back().kill().now());
  EXPECT_TRUE(c.End("a", "n1", 137).ok());
  EXPECT_EQ(c.Status("a").state(), CANCELLED);
}

TEST(ClusterState, HungRankEndsTheGenerationAndIsNamed) {
  ClusterFixture c;
  c.RunOnOneNode();
  EXPECT_TRUE(c.Step("a", 0, 5).ok());
  EXPECT_TRUE(c.Step("a", 1, 4).ok());
  c.Live(absl::Seconds(59));
  EXPECT_EQ(c.Status("a").state(), RUNNING);
  c.Live(absl::Seconds(2));
  EXPECT_EQ(c.Status("a").state(), ABORTING);
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("rank 1 on n1"));
  EXPECT_TRUE(c.Newest<PushControl>().control.abort());
}

TEST(ClusterState, StartDeadlineNamesTheRanksThatNeverCame) {
  ClusterFixture c;
  ASSERT_TRUE(c.Join("n1", 2).ok());
  ASSERT_TRUE(c.Do(JobSubmitted{SmallJob("a", 1, 1, 2), "auto"}).ok());
  ASSERT_TRUE(c.Restore("a").ok());
  EXPECT_TRUE(c.Ready("a", 0).ok());
  c.Live(absl::Seconds(121));
  EXPECT_EQ(c.Status("a").state(), ABORTING);
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("rank 1 on n1"));
  EXPECT_THAT(c.Status("a").reason(), ::testing::Not(HasSubstr("rank 0")));
}

TEST(ClusterState, LostNodeRestartsOnTheOthers) {
  ClusterFixture c;
  ASSERT_TRUE(c.Join("n1", 2).ok());
  ASSERT_TRUE(c.Join("n2", 2).ok());
  ASSERT_TRUE(c.Do(JobSubmitted{SmallJob("a", 1, 2, 2), "auto"}).ok());
  ASSERT_TRUE(c.Restore("a").ok());
  c.AllReady("a");
  EXPECT_EQ(c.Status("a").ranks(), 4u);
  EXPECT_TRUE(c.Leave("n1").ok());  // the head, with its mpirun
  EXPECT_EQ(c.Status("a").state(), ABORTING);
  EXPECT_TRUE(c.CommandsTo("n2").back().has_kill());
  EXPECT_TRUE(c.End("a", "n2", 0).ok());
  EXPECT_EQ(c.Status("a").state(), WAITING) << "the node may be back at once";
  c.Live(absl::Milliseconds(200));
  EXPECT_TRUE(c.Restore("a").ok());
  EXPECT_EQ(c.Status("a").ranks(), 2u);
  EXPECT_EQ(c.state.rank_table("a")->ranks(0).node(), "n2");
}

TEST(ClusterState, WhileTheCoordinatorWasStalledNobodyCountsAsSilent) {
  JobSpec spec = SmallJob("a", 1, 1, 2);
  ClusterFixture c;
  c.RunOnOneNode(spec);
  const absl::Duration stall = absl::Seconds(spec.health().progress_timeout()) + absl::Hours(1);
  c.now += stall;
  ASSERT_TRUE(c.Do(Stalled{stall}).ok());
  ASSERT_TRUE(c.Do(Tick{}).ok());
  EXPECT_EQ(c.Status("a").state(), RUNNING);
  c.Advance(c.options.lease_ttl);  // silence from here on counts as ever
  EXPECT_NE(c.Status("a").state(), RUNNING);
}

TEST(ClusterState, SilentNodeIsLostWithItsLease) {
  ClusterFixture c;
  c.RunOnOneNode();
  c.Advance(absl::Seconds(4));
  EXPECT_EQ(c.Status("a").state(), RUNNING);
  c.Advance(absl::Seconds(1));
  EXPECT_EQ(c.Status("a").state(), WAITING);
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("0 of at least 1 nodes"));
}

TEST(ClusterState, GrowsByASavedStopWhenANodeJoins) {
  ClusterFixture c;
  ASSERT_TRUE(c.Join("n1", 2).ok());
  ASSERT_TRUE(c.Do(JobSubmitted{SmallJob("a", 1, 2, 2), "auto"}).ok());
  EXPECT_EQ(c.Status("a").state(), QUEUED) << "another node may be on its way";
  c.Live(absl::Seconds(2));
  ASSERT_TRUE(c.Restore("a").ok());
  c.AllReady("a");
  ASSERT_TRUE(c.Join("n2", 2).ok());
  c.Live(absl::Seconds(3));
  EXPECT_EQ(c.Status("a").state(), DRAINING);
  c.SnapshotAll("a", 7);
  EXPECT_TRUE(c.End("a", "n1", kExitPlannedRestart).ok());
  EXPECT_TRUE(c.Staged().ok());
  c.AllShards();
  EXPECT_TRUE(c.Committed().ok());
  EXPECT_TRUE(c.Restore("a", 7).ok());
  EXPECT_EQ(c.Status("a").ranks(), 4u);
  EXPECT_EQ(c.Status("a").restarts(), 0u) << "a change of size is no failure";
}

TEST(ClusterState, JobsWaitForBusyNodesInOrder) {
  ClusterFixture c;
  c.RunOnOneNode();
  ASSERT_TRUE(c.Do(JobSubmitted{SmallJob("b", 1, 1, 2), "auto"}).ok());
  EXPECT_EQ(c.Status("b").state(), QUEUED);
  EXPECT_THAT(c.Status("b").reason(), HasSubstr("busy"));
  c.Save("a", 100);
  EXPECT_TRUE(c.End("a", "n1", 0).ok());
  EXPECT_EQ(c.Status("a").state(), SUCCEEDED);
  EXPECT_EQ(c.Status("b").state(), PLANNING);
}

TEST(ClusterState, GivesUpAfterGenerationsWithoutProgress) {
  ClusterFixture c;
  c.RunOnOneNode();
  for (int failure = 1; failure <= 3; ++failure) {
    EXPECT_TRUE(c.End("a", "n1", 1, "rank 0: bad luck").ok());
    if (failure == 3) break;
    ASSERT_TRUE(c.Restore("a").ok()) << failure;
    c.AllReady("a");
  }
  EXPECT_EQ(c.Status("a").state(), FAILED);
  EXPECT_EQ(c.Status("a").exit_code(), kExitGaveUp);
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("rank 0: bad luck"));
}

TEST(ClusterState, GivesUpAfterTooManyFailuresInTheWindow) {
  JobSpec spec = SmallJob("a", 1, 1, 2);
  spec.mutable_health()->set_max_failures(2);
  ClusterFixture c;
  c.RunOnOneNode(spec);
  for (uint64_t failure = 1; failure <= 3; ++failure) {
    c.Save("a", failure);  // progress each time
    EXPECT_TRUE(c.End("a", "n1", 1).ok());
    if (failure == 3) break;
    ASSERT_EQ(c.Status("a").state(), PLANNING);
    ASSERT_TRUE(c.Restore("a", failure).ok());
    c.AllReady("a");
  }
  EXPECT_EQ(c.Status("a").exit_code(), kExitGaveUp);
}

TEST(ClusterState, FailuresOutsideTheWindowAreForgotten) {
  JobSpec spec = SmallJob("a", 1, 1, 2);
  spec.mutable_health()->set_max_failures(1);
  ClusterFixture c;
  c.RunOnOneNode(spec);
  for (uint64_t failure = 1; failure <= 5; ++failure) {
    c.Save("a", failure);
    c.Do(AgentRenewed{"n1", "i1"}).IgnoreError();
    EXPECT_TRUE(c.End("a", "n1", 1).ok());
    ASSERT_TRUE(c.Restore("a", failure).ok());
    c.AllReady("a");
    for (int minute = 0; minute < 80; ++minute) {
      c.Live(absl::Seconds(50));
      for (uint32_t r = 0; r < 2; ++r) c.Step("a", r, failure * 100 + minute).IgnoreError();
    }
    ASSERT_EQ(c.Status("a").state(), RUNNING);
  }
}

TEST(ClusterState, SomeExitCodesAreNotRetried) {
  for (const auto& [code, job_code] : std::vector<std::pair<int, int>>{{kExitMismatch, 1},
                                                                       {kExitDataCorrupt, 1},
                                                                       {kExitNonFinite, 1},
                                                                       {kExitNotStarted, 1},
                                                                       {2, 2}}) {
    ClusterFixture c;
    c.RunOnOneNode();
    EXPECT_TRUE(c.End("a", "n1", code, "rank 0: why").ok());
    EXPECT_EQ(c.Status("a").state(), FAILED) << code;
    EXPECT_EQ(c.Status("a").exit_code(), job_code) << code;
    EXPECT_THAT(c.Status("a").reason(), HasSubstr("rank 0: why"));
  }
}

TEST(ClusterState, CorruptCheckpointIsReadWholeAndAnOlderOneTaken) {
  ClusterFixture c;
  ASSERT_TRUE(c.Join("n1", 2).ok());
  ASSERT_TRUE(c.Do(JobSubmitted{SmallJob("a", 1, 1, 2), "auto"}).ok());
  ASSERT_TRUE(c.Restore("a", 40).ok());
  EXPECT_FALSE(c.Newest<ChooseRestore>().verify_content);
  EXPECT_TRUE(c.End("a", "n1", kExitCheckpointInvalid, "rank 1: MASTER/head: checksum").ok());
  ASSERT_EQ(c.Status("a").state(), PLANNING);
  EXPECT_TRUE(c.Newest<ChooseRestore>().verify_content);
  ASSERT_TRUE(c.Restore("a", 20).ok());
  c.AllReady("a");
  EXPECT_EQ(c.Status("a").committed_step(), 20u);
  EXPECT_EQ(c.Status("a").state(), RUNNING);
}

TEST(ClusterState, CheckpointThatIsCorruptAfterItWasReadWholeIsExit8AndNamed) {
  ClusterFixture c;
  ASSERT_TRUE(c.Join("n1", 2).ok());
  ASSERT_TRUE(c.Do(JobSubmitted{SmallJob("a", 1, 1, 2), "auto"}).ok());
  for (int time = 1; time <= 2; ++time) {
    ASSERT_TRUE(c.Restore("a", 40).ok());
    EXPECT_TRUE(c.End("a", "n1", kExitCheckpointInvalid, "rank 1: MASTER/head: checksum").ok());
  }
  EXPECT_EQ(c.Status("a").exit_code(), kExitCheckpointInvalid);
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("checkpoints/step-40"));
}

TEST(ClusterState, FinishedJobSaysSoAndNamesTheWayOut) {
  ClusterFixture c;
  ASSERT_TRUE(c.Join("n1", 2).ok());
  ASSERT_TRUE(c.Do(JobSubmitted{SmallJob("a", 1, 1, 2), "auto"}).ok());
  ASSERT_TRUE(c.Restore("a", 100).ok());
  EXPECT_EQ(c.Status("a").state(), SUCCEEDED);
  EXPECT_THAT(c.Status("a").reason(), HasSubstr("--resume never"));
}

TEST(ClusterState, ResubmittedNameGoesOnCountingGenerations) {
  ClusterFixture c;
  c.RunOnOneNode();
  EXPECT_TRUE(absl::IsAlreadyExists(c.Do(JobSubmitted{SmallJob("a", 1, 1, 2), "auto"})));
  EXPECT_TRUE(c.Do(StopRequested{"a", true}).ok());
  EXPECT_TRUE(c.End("a", "n1", 137).ok());
  ASSERT_TRUE(c.Do(JobSubmitted{SmallJob("a", 1, 1, 2), "never"}).ok());
  EXPECT_EQ(c.Newest<ChooseRestore>().resume, "never");
  ASSERT_TRUE(c.Restore("a").ok());
  EXPECT_EQ(c.Status("a").generation(), 2u);
  EXPECT_TRUE(c.End("a", "n1", 1).ok());
  EXPECT_EQ(c.Newest<ChooseRestore>().resume, "auto") << "a restart must not start anew again";
}

TEST(ClusterState, WrongTokenAndSecondProcessOfARankAreRefused) {
  ClusterFixture c;
  c.RunOnOneNode();
  WorkerIdentity thief = c.Worker("a", 0);
  thief.set_token("guess");
  EXPECT_TRUE(absl::IsPermissionDenied(c.Do(RankTableAsked{thief})));
  WorkerIdentity twin = c.Worker("a", 0);
  twin.set_incarnation("another");
  EXPECT_TRUE(absl::IsFailedPrecondition(c.Do(RankTableAsked{twin})));
  EXPECT_TRUE(c.Do(RankTableAsked{c.Worker("a", 0)}).ok());
}

TEST(ClusterState, AgentThatStillRunsAnEndedGenerationIsToldToKillIt) {
  ClusterFixture c;
  c.RunOnOneNode();
  EXPECT_TRUE(c.Leave("n1").ok());
  AgentRegistration registration;
  registration.set_slots(2);
  registration.set_running_job("a");
  registration.set_running_generation(1);
  EXPECT_TRUE(c.Do(AgentJoined{"n1", "i1", registration}).ok());
  c.incarnations["n1"] = "i1";
  EXPECT_TRUE(c.CommandsTo("n1").back().has_kill());
  EXPECT_NE(c.Status("a").state(), PLANNING) << "the node is not free yet";
  EXPECT_TRUE(c.End("a", "n1", 137).ok());
  EXPECT_EQ(c.Status("a").state(), PLANNING);
}

TEST(ClusterState, TokensAreComparedWhole) {
  EXPECT_TRUE(EqualInConstantTime("abc", "abc"));
  EXPECT_FALSE(EqualInConstantTime("abc", "abd"));
  EXPECT_FALSE(EqualInConstantTime("abc", "ab"));
  EXPECT_FALSE(EqualInConstantTime("ab", "abab"));
  EXPECT_FALSE(EqualInConstantTime("abc", ""));
  EXPECT_FALSE(EqualInConstantTime("", "abc"));
}

}  // namespace
}  // namespace moesaic
