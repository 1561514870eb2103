#include "launcher/chaos/chaos_judge.h"

#include <gtest/gtest.h>

namespace moesaic {
namespace {

class ChaosJudgeTest : public testing::Test {
 protected:
  void Status(JobState state, uint64_t generation, uint64_t committed = 0) {
    JobEvent event;
    event.mutable_status()->set_state(state);
    event.mutable_status()->set_generation(generation);
    event.mutable_status()->set_committed_step(committed);
    event.mutable_status()->add_nodes()->set_node("n1");
    JobNode* spare = event.mutable_status()->add_nodes();
    spare->set_node("n2");
    spare->set_spare(true);
    judge_.Take(event, now_);
  }
  void Step(uint64_t step, uint64_t generation) {
    JobEvent event;
    event.mutable_step()->set_step(step);
    event.mutable_step()->set_generation(generation);
    judge_.Take(event, now_);
  }
  void Inject(const std::string& fault, ChaosTarget::Kind kind = ChaosTarget::kRank,
              const std::string& node = "") {
    PlannedFault planned;
    planned.fault = *ParseFault(fault);
    planned.target.kind = kind;
    planned.target.node = node;
    planned.text = fault;
    judge_.Injected(planned, now_);
  }
  void Pass(absl::Duration time) {
    now_ += time;
    judge_.Tick(now_);
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  ChaosJudge judge_{absl::Seconds(30)};
};

TEST_F(ChaosJudgeTest, CountsTheCostOfADeath) {
  Status(RUNNING, 1);
  Step(49, 1);
  Inject("kill");
  Pass(absl::Seconds(1));
  Step(50, 1);  // was on its way
  EXPECT_FALSE(judge_.calm());
  Status(ABORTING, 1);
  Pass(absl::Seconds(2));
  Status(RUNNING, 2);
  Step(41, 2);
  EXPECT_TRUE(judge_.calm());
  ASSERT_EQ(judge_.costs().size(), 1u);
  const FaultCost& cost = judge_.costs()[0];
  EXPECT_EQ(cost.step, 49u);
  EXPECT_EQ(cost.detected, absl::Seconds(1));
  EXPECT_EQ(cost.training_again, absl::Seconds(3));
  EXPECT_EQ(cost.steps_lost, 10u);
  EXPECT_TRUE(judge_.violations().empty());
}

TEST_F(ChaosJudgeTest, AShortFaultNeedsNoNewGeneration) {
  Status(RUNNING, 1);
  Step(10, 1);
  Inject("stop:5s");
  Pass(absl::Seconds(1));
  Step(11, 1);
  EXPECT_FALSE(judge_.calm());  // it is not over
  Pass(absl::Seconds(5));
  Step(12, 1);
  EXPECT_TRUE(judge_.calm());
  EXPECT_FALSE(judge_.costs()[0].detected.has_value());
  EXPECT_EQ(judge_.costs()[0].steps_lost, 0u);
}

TEST_F(ChaosJudgeTest, TheDeathOfANodeNeedsANewGenerationUnlessItWasSpare) {
  Status(RUNNING, 1);
  Step(10, 1);
  Inject("kill", ChaosTarget::kNode, "n2");
  Step(11, 1);
  EXPECT_TRUE(judge_.calm());
  Inject("kill", ChaosTarget::kNode, "n1");
  Step(12, 1);  // was on its way
  EXPECT_FALSE(judge_.calm());
  Step(12, 2);
  EXPECT_TRUE(judge_.calm());
}

TEST_F(ChaosJudgeTest, M3NoTrainingInTimeIsAViolation) {
  Status(RUNNING, 1);
  Step(10, 1);
  Inject("hang_collective");
  Pass(absl::Seconds(29));
  EXPECT_TRUE(judge_.violations().empty());
  Pass(absl::Seconds(2));
  ASSERT_EQ(judge_.violations().size(), 1u);
  EXPECT_EQ(judge_.violations()[0].substr(0, 3), "M3:");
}

TEST_F(ChaosJudgeTest, M1GenerationsOnlyGrow) {
  Status(RUNNING, 5);
  Status(RUNNING, 4);
  ASSERT_EQ(judge_.violations().size(), 1u);
}

TEST_F(ChaosJudgeTest, C1ACommitThatIsLostIsAViolationUnlessItWasBrokenOnPurpose) {
  Status(RUNNING, 1, 100);
  Inject("corrupt_shard", ChaosTarget::kCheckpoint);
  Status(RUNNING, 2, 80);
  EXPECT_TRUE(judge_.violations().empty());
  Status(RUNNING, 3, 60);
  ASSERT_EQ(judge_.violations().size(), 1u);
}

TEST_F(ChaosJudgeTest, AJobThatFailsIsAViolation) {
  Status(SUCCEEDED, 1);
  EXPECT_TRUE(judge_.violations().empty());
  EXPECT_TRUE(judge_.ended());
  Status(FAILED, 1);
  EXPECT_EQ(judge_.violations().size(), 1u);
}

}  // namespace
}  // namespace moesaic
