#include "scheduler/state/rebalance.h"

#include <gtest/gtest.h>

#include <random>

namespace moesaic {
namespace {

const RebalanceRules kRules = {.ratio = 1.2, .after = absl::Seconds(60)};

RebalanceFacts Unbalanced() {
  return {.imbalance = 2,
          .possible = 1,
          .expert_share = 0.5,
          .step_seconds = 1,
          .steps_left = 1000,
          .pause_seconds = 3};
}

absl::Time At(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

TEST(Rebalance, GainIsThePartOfAStepThatExpertsTake) {
  RebalanceFacts facts = Unbalanced();
  // A step of one second: a third does not depend on the balance, two thirds halve.
  EXPECT_NEAR(PredictedGain(facts), 1000.0 / 3, 1e-9);
  facts.expert_share = 0;
  EXPECT_EQ(PredictedGain(facts), 0);
  facts.expert_share = 1;
  EXPECT_NEAR(PredictedGain(facts), 500, 1e-9);
  facts.possible = 3;  // worse
  EXPECT_LT(PredictedGain(facts), 0);
}

TEST(Rebalance, MovesOnlyAfterItWasWorthwhileForSoLong) {
  RebalanceWatch watch(kRules);
  for (int second = 0; second < 60; second += 15) {
    ASSERT_TRUE(watch.Due(At(second)));
    EXPECT_FALSE(watch.Consider(Unbalanced(), At(second))) << second;
    EXPECT_FALSE(watch.Due(At(second + 14)));
  }
  const auto why = watch.Consider(Unbalanced(), At(60));
  ASSERT_TRUE(why.has_value());
  EXPECT_NE(why->find("2.00 of the mean, 1.00 once experts move"), std::string::npos) << *why;
  EXPECT_NE(why->find("1000 steps that are left gain about 333 s"), std::string::npos) << *why;
}

TEST(Rebalance, ABreakStartsTheWaitAnew) {
  RebalanceWatch watch(kRules);
  EXPECT_FALSE(watch.Consider(Unbalanced(), At(0)));
  RebalanceFacts balanced = Unbalanced();
  balanced.imbalance = 1.19;
  EXPECT_FALSE(watch.Consider(balanced, At(45)));
  EXPECT_FALSE(watch.Consider(Unbalanced(), At(61)));
  EXPECT_FALSE(watch.Consider(Unbalanced(), At(120)));
  EXPECT_TRUE(watch.Consider(Unbalanced(), At(121)));

  RebalanceWatch forgetful(kRules);
  EXPECT_FALSE(forgetful.Consider(Unbalanced(), At(0)));
  forgetful.Forget();
  EXPECT_FALSE(forgetful.Consider(Unbalanced(), At(61)));
}

TEST(Rebalance, NotForStepsThatGainLessThanThePauseCosts) {
  RebalanceWatch watch(kRules);
  RebalanceFacts facts = Unbalanced();
  facts.steps_left = 17;  // 5.7 s to gain, for a pause of 3 s
  EXPECT_FALSE(watch.Consider(facts, At(0)));
  EXPECT_FALSE(watch.Consider(facts, At(100)));
  facts.steps_left = 19;
  EXPECT_FALSE(watch.Consider(facts, At(200)));
  EXPECT_TRUE(watch.Consider(facts, At(300)));
}

TEST(Rebalance, RestsAfterAMove) {
  RebalanceWatch watch(kRules);
  EXPECT_FALSE(watch.Consider(Unbalanced(), At(0)));
  EXPECT_TRUE(watch.Consider(Unbalanced(), At(60)));
  EXPECT_FALSE(watch.Due(At(659)));
  EXPECT_TRUE(watch.Due(At(660)));
  EXPECT_FALSE(watch.Consider(Unbalanced(), At(660)));
}

TEST(Rebalance, ZeroMeansNever) {
  RebalanceWatch watch({.ratio = 0});
  EXPECT_FALSE(watch.Due(At(0)));
  EXPECT_FALSE(watch.Consider(Unbalanced(), At(0)));
  EXPECT_FALSE(watch.Consider(Unbalanced(), At(1000)));
}

// However the load behaves, experts move at most once in kRest times the wait.
TEST(Rebalance, NeverFlaps) {
  for (unsigned seed = 1; seed <= 50; ++seed) {
    std::mt19937 random(seed);
    RebalanceWatch watch(kRules);
    absl::Time last = absl::InfinitePast();
    int moves = 0;
    for (int second = 0; second < 20000; ++second) {
      if (!watch.Due(At(second))) continue;
      RebalanceFacts facts = Unbalanced();
      facts.imbalance = random() % 20 == 0 ? 1.0 : 1.1 + 0.01 * static_cast<double>(random() % 100);
      if (!watch.Consider(facts, At(second))) continue;
      EXPECT_GE(At(second), last + RebalanceWatch::kRest * kRules.after);
      last = At(second);
      ++moves;
    }
    EXPECT_GT(moves, 0);
  }
}

}  // namespace
}  // namespace moesaic
