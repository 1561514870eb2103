#include "trainer/optim/lr_schedule.h"

#include <gtest/gtest.h>

namespace moesaic {
namespace {

TEST(LearningRate, WarmUpRisesLinearlyAndEndsAtOne) {
  ScheduleSpec schedule;
  schedule.set_warmup_steps(4);
  schedule.mutable_constant();
  EXPECT_DOUBLE_EQ(LearningRateFactor(schedule, 10, 0), 0.25);
  EXPECT_DOUBLE_EQ(LearningRateFactor(schedule, 10, 3), 1);
  EXPECT_DOUBLE_EQ(LearningRateFactor(schedule, 10, 9), 1);
}

TEST(LearningRate, CosineFallsFromOneToItsFloor) {
  ScheduleSpec schedule;
  schedule.set_warmup_steps(2);
  schedule.mutable_cosine()->set_final_factor(0.1);
  EXPECT_DOUBLE_EQ(LearningRateFactor(schedule, 12, 2), 1);
  EXPECT_NEAR(LearningRateFactor(schedule, 12, 7), 0.55, 1e-12);
  EXPECT_NEAR(LearningRateFactor(schedule, 12, 12), 0.1, 1e-12);
  EXPECT_NEAR(LearningRateFactor(schedule, 12, 40), 0.1, 1e-12);
}

TEST(LearningRate, LinearFallsEvenly) {
  ScheduleSpec schedule;
  schedule.mutable_linear()->set_final_factor(0);
  EXPECT_DOUBLE_EQ(LearningRateFactor(schedule, 10, 0), 1);
  EXPECT_DOUBLE_EQ(LearningRateFactor(schedule, 10, 5), 0.5);
  EXPECT_DOUBLE_EQ(LearningRateFactor(schedule, 10, 10), 0);
}

TEST(LearningRate, WsdHoldsThenDecays) {
  ScheduleSpec schedule;
  schedule.set_warmup_steps(1);
  schedule.mutable_wsd()->set_decay_steps(4);
  schedule.mutable_wsd()->set_final_factor(0.5);
  EXPECT_DOUBLE_EQ(LearningRateFactor(schedule, 10, 6), 1);
  EXPECT_DOUBLE_EQ(LearningRateFactor(schedule, 10, 8), 0.75);
  EXPECT_DOUBLE_EQ(LearningRateFactor(schedule, 10, 10), 0.5);
}

}  // namespace
}  // namespace moesaic
