#include "trainer/recipe/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "proto/job_spec.h"
#include "trainer/recipe/recipe.h"

namespace moesaic {
namespace {

JobSpec Job(uint64_t steps) {
  JobSpec spec;
  spec.mutable_train()->set_steps(steps);
  spec.mutable_recipe()->set_preset("evomoe");
  EXPECT_TRUE(ApplyPreset(&spec).empty());
  ApplyDefaults(&spec);
  return spec;
}

DenseToSparseSpec& GateOf(JobSpec& spec) {
  return *spec.mutable_recipe()->mutable_router()->mutable_select()->mutable_dense_to_sparse();
}

TEST(RecipeSchedule, ThePhasesOfEvoMoeFollowFromTheStep) {
  const JobSpec spec = Job(100);
  EXPECT_EQ(spec.recipe().experts().spawn().step(), 10u);
  const RecipeSchedule schedule(spec.recipe());
  EXPECT_EQ(schedule.PhaseAt(0), ONE_EXPERT);
  EXPECT_EQ(schedule.PhaseAt(9), ONE_EXPERT);
  EXPECT_EQ(schedule.PhaseAt(10), DENSE_TO_SPARSE);
  EXPECT_EQ(schedule.PhaseAt(49), DENSE_TO_SPARSE);
  EXPECT_EQ(schedule.PhaseAt(50), TOP_1);
  EXPECT_EQ(schedule.PhaseAt(1000), TOP_1);
  EXPECT_EQ(RecipeAt(spec, 30).phase, DENSE_TO_SPARSE);
  EXPECT_DOUBLE_EQ(RecipeAt(spec, 30).temperature, 2 - 0.5 * 1.7);
}

TEST(RecipeSchedule, EachPartAloneHasItsPhases) {
  JobSpec spawn = Job(100);
  spawn.mutable_recipe()->mutable_router()->mutable_select()->clear_dense_to_sparse();
  EXPECT_EQ(RecipeSchedule(spawn.recipe()).PhaseAt(9), ONE_EXPERT);
  EXPECT_EQ(RecipeSchedule(spawn.recipe()).PhaseAt(10), STEADY);
  EXPECT_EQ(RecipeSchedule(spawn.recipe()).TemperatureAt(10), 1);
  JobSpec gate = Job(100);
  gate.mutable_recipe()->mutable_experts()->clear_spawn();
  EXPECT_EQ(RecipeSchedule(gate.recipe()).PhaseAt(0), DENSE_TO_SPARSE);
  EXPECT_EQ(RecipeSchedule(gate.recipe()).PhaseAt(50), TOP_1);
  EXPECT_EQ(RecipeSchedule().PhaseAt(0), STEADY);
}

TEST(RecipeSchedule, EVO4_TheTemperatureFallsFromTheFirstToTheLast) {
  for (const auto kind : {DenseToSparseSpec::LINEAR, DenseToSparseSpec::EXPONENTIAL}) {
    JobSpec spec = Job(100);
    GateOf(spec).set_schedule(kind);
    GateOf(spec).set_decay_steps(20);
    const RecipeSchedule schedule(spec.recipe());
    EXPECT_EQ(schedule.TemperatureAt(0), 2);
    EXPECT_EQ(schedule.TemperatureAt(10), 2);
    for (uint64_t step = 11; step <= 30; ++step) {
      EXPECT_LT(schedule.TemperatureAt(step), schedule.TemperatureAt(step - 1)) << step;
    }
    for (const uint64_t step : {30, 31, 1000}) EXPECT_EQ(schedule.TemperatureAt(step), 0.3);
  }
}

TEST(RecipeSchedule, EVO4_LinearAndExponentialDifferOnlyOnTheWay) {
  JobSpec spec = Job(100);
  const RecipeSchedule linear(spec.recipe());
  GateOf(spec).set_schedule(DenseToSparseSpec::EXPONENTIAL);
  const RecipeSchedule exponential(spec.recipe());
  EXPECT_EQ(linear.TemperatureAt(10), exponential.TemperatureAt(10));
  EXPECT_EQ(linear.TemperatureAt(50), exponential.TemperatureAt(50));
  EXPECT_GT(linear.TemperatureAt(30), exponential.TemperatureAt(30));
  EXPECT_NEAR(exponential.TemperatureAt(30), std::sqrt(2 * 0.3), 1e-12);
}

TEST(RecipeSchedule, AShortJobStillHasItsPhases) {
  const JobSpec spec = Job(2);
  EXPECT_EQ(spec.recipe().experts().spawn().step(), 1u);
  EXPECT_EQ(RecipeSchedule(spec.recipe()).PhaseAt(0), ONE_EXPERT);
  EXPECT_EQ(RecipeSchedule(spec.recipe()).PhaseAt(1), DENSE_TO_SPARSE);
}

TEST(BalanceCoefficient, IsTheLaterOneFromItsStepOn) {
  BalanceSpec balance;
  balance.set_coefficient(0.02);
  EXPECT_EQ(BalanceCoefficientAt(balance, 1000), 0.02);
  balance.mutable_later()->set_step(10);
  balance.mutable_later()->set_coefficient(0);
  EXPECT_EQ(BalanceCoefficientAt(balance, 9), 0.02);
  EXPECT_EQ(BalanceCoefficientAt(balance, 10), 0);
  EXPECT_EQ(BalanceCoefficientAt(balance, 1000), 0);
}

}  // namespace
}  // namespace moesaic
