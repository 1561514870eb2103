#include "trainer/model/router/router.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/trainer/model/model_fixture.h"
#include "trainer/model/pair_sort.h"
#include "trainer/model/router/balance.h"
#include "trainer/model/router/capacity.h"
#include "trainer/model/router/score.h"
#include "trainer/model/router/select.h"
#include "trainer/model/router/weight.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;

RouterSpec Rule(const std::string& more = "") { return SmallJob(more).recipe().router(); }

std::vector<int64_t> Row(const at::Tensor& t, int64_t row) {
  const at::Tensor r = t.select(0, row).contiguous();
  return {r.data_ptr<int64_t>(), r.data_ptr<int64_t>() + r.numel()};
}

at::Tensor RandomLogits(int64_t tokens, int64_t experts, uint64_t seed = 1) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn({tokens, experts}, generator, at::kFloat);
}

TEST(Select, TiesGoToTheLowestExpert) {
  const at::Tensor scores = at::tensor({0.2f, 0.5f, 0.5f, 0.2f, 0.5f,  //
                                        0.1f, 0.1f, 0.1f, 0.1f, 0.1f})
                                .view({2, 5});
  const at::Tensor selected = SelectTopK(scores, 4);
  EXPECT_THAT(Row(selected, 0), ElementsAre(1, 2, 4, 0));
  EXPECT_THAT(Row(selected, 1), ElementsAre(0, 1, 2, 3));
}

TEST(Select, EveryExpertOnceWhenAllAreActive) {
  const at::Tensor selected = SelectTopK(RandomLogits(50, 7), 7);
  for (int64_t t = 0; t < 50; ++t) {
    EXPECT_THAT(Row(selected, t), ::testing::UnorderedElementsAre(0, 1, 2, 3, 4, 5, 6));
  }
}

// A diverged model must fail by its loss, not by an index out of range.
TEST(Select, NotANumberStillSelectsDistinctExperts) {
  const at::Tensor scores = at::full({1, 4}, std::numeric_limits<float>::quiet_NaN(), at::kFloat);
  EXPECT_THAT(Row(SelectTopK(scores, 3), 0), ::testing::UnorderedElementsAre(0, 1, 2));
}

TEST(Select, CapacityKeepsTheFirstTokens) {
  at::Tensor selected = at::tensor({0, 1, 0, 2, 0, 1}, at::kLong).view({3, 2});
  EXPECT_EQ(DropBeyondCapacity({.capacity = 1, .bins = 3}, at::rand({3, 3}), selected), 3);
  EXPECT_THAT(Row(selected, 0), ElementsAre(0, 1));
  EXPECT_THAT(Row(selected, 1), ElementsAre(-1, 2));
  EXPECT_THAT(Row(selected, 2), ElementsAre(-1, -1));
  EXPECT_EQ(BinCapacity(1.0, 10, 2, 3), 7);
  EXPECT_EQ(BinCapacity(1.25, 8, 2, 4), 5);
}

TEST(PairSort, IsStableAndSkipsDroppedPairs) {
  const at::Tensor expert = at::tensor({2, 0, -1, 2, 0, 1}, at::kLong).view({3, 2});
  const SortedPairs sorted = SortByExpert(expert, 4);
  EXPECT_THAT(sorted.counts, ElementsAre(2, 1, 2, 0));
  EXPECT_THAT(Row(sorted.token.view({1, -1}), 0), ElementsAre(0, 2, 2, 0, 1));
  EXPECT_THAT(Row(sorted.position.view({1, -1}), 0), ElementsAre(3, 0, -1, 4, 1, 2));
}

TEST(Weight, SoftmaxThenTopKRenormalisedIsSoftmaxOverTheChosenLogits) {
  const at::Tensor logits = RandomLogits(64, 6);
  const Routing routing =
      Router({.rule = Rule(), .experts = 6, .active = 3}).Route({.logits = logits});
  const at::Tensor expected = at::softmax(logits.gather(1, routing.selected), 1);
  EXPECT_LT(RelativeError(routing.weight, expected), 1e-6);
}

TEST(Select, AboveAThresholdAsManyAsThereAre) {
  const at::Tensor scores = at::tensor({0.1f, 0.5f, 0.4f,  //
                                        0.2f, 0.2f, 0.2f,  //
                                        0.9f, 0.1f, 0.0f})
                                .view({3, 3});
  const at::Tensor selected = SelectAbove(scores, 0.2f);
  EXPECT_THAT(Row(selected, 0), ElementsAre(1, 2));
  EXPECT_THAT(Row(selected, 1), ElementsAre(-1, -1));
  EXPECT_THAT(Row(selected, 2), ElementsAre(0, -1));
  EXPECT_EQ(SelectAbove(scores, 1).size(1), 1);
  EXPECT_EQ(SelectAbove(scores.narrow(0, 0, 0), 0.2f).size(0), 0);
}

// Tokens that take none, one and three experts.
TEST(Weight, OfAVaryingFanOutHasTheGradientOfItsDefinition) {
  const at::Tensor scores = at::softmax(RandomLogits(3, 4), 1);
  const at::Tensor selected =
      at::tensor({-1, -1, -1, 2, -1, -1, 0, 1, 3}, at::kLong).view({3, 3});
  const at::Tensor towards = RandomLogits(3, 3, 2);
  for (const bool renormalize : {false, true}) {
    WeightSpec rule;
    rule.set_renormalize(renormalize);
    rule.set_scale(2.5);
    const auto value = [&](const at::Tensor& s) {
      return (SelectedWeights(rule, s, selected) * towards).to(at::kDouble).sum().item<double>();
    };
    const at::Tensor weights = SelectedWeights(rule, scores, selected);
    EXPECT_TRUE(weights.select(0, 0).eq(0).all().item<bool>());
    at::Tensor gradient = at::zeros_like(scores);
    SelectedWeightsBackward(rule, scores, selected, towards, gradient);
    for (int64_t i = 0; i < scores.numel(); ++i) {
      constexpr float kStep = 1e-2;
      at::Tensor up = scores.clone(), down = scores.clone();
      up.view(-1)[i] += kStep;
      down.view(-1)[i] -= kStep;
      EXPECT_NEAR(gradient.view(-1)[i].item<float>(), (value(up) - value(down)) / (2 * kStep), 2e-2)
          << i << " " << renormalize;
    }
  }
}

// f_i of a varying fan-out has a mean of 1, or grows with the fan-out where the rule's K is given.
TEST(Balance, OfAVaryingFanOut) {
  BalanceSpec rule;
  rule.set_coefficient(0.5);
  const at::Tensor probabilities = at::full({2, 4}, 0.25f);
  BalanceInputs inputs = {.rule = &rule,
                          .score = &FindScore(SOFTMAX),
                          .logits = at::zeros({2, 4}),
                          .scores = probabilities,
                          .selected = at::tensor({0, 1, 3, 2, -1, -1}, at::kLong).view({2, 3})};
  EXPECT_NEAR(BalanceLoss(inputs), 0.5, 1e-12);
  inputs.fan_out = 1;
  EXPECT_NEAR(BalanceLoss(inputs), 0.5 * 2, 1e-12);  // two experts a token
  inputs.fan_out = 0;
  inputs.selected = at::full({2, 3}, -1, at::kLong);
  EXPECT_EQ(BalanceLoss(inputs), 0);
  at::Tensor dscores = at::zeros_like(probabilities), dlogits = at::zeros_like(probabilities);
  BalanceLossBackward(inputs, 1, dscores, dlogits);
  EXPECT_TRUE(dscores.eq(0).all().item<bool>());
}

// The canonical loss is alpha whenever the counts or the probabilities are uniform.
TEST(Balance, EqualsAlphaWhenProbabilitiesAreUniform) {
  const Router router({.rule = Rule("recipe { router { balance { coefficient: 0.3 } } }"),
                       .experts = 8,
                       .active = 2});
  EXPECT_NEAR(router.Route({.logits = at::zeros({10, 8})}).aux_loss, 0.3, 1e-7);
  const Router sigmoid(
      {.rule = Rule("recipe { router { score: SIGMOID balance { coefficient: 0.3 } } }"),
       .experts = 8,
       .active = 2});
  EXPECT_NEAR(sigmoid.Route({.logits = at::full({10, 8}, 1.5)}).aux_loss, 0.3, 1e-7);
}

TEST(Balance, EqualsAlphaWhenCountsAreUniform) {
  const Router router({.rule = Rule("recipe { router { balance { coefficient: 0.3 } } }"),
                       .experts = 4,
                       .active = 1});
  at::Tensor logits = RandomLogits(4, 4);
  for (int64_t t = 0; t < 4; ++t) logits[t][t] = 9;
  const Routing routing = router.Route({.logits = logits});
  EXPECT_THAT(routing.counts, ElementsAre(1, 1, 1, 1));
  EXPECT_NEAR(routing.aux_loss, 0.3, 1e-6);
}

// Counts say expert 0, probabilities expert 1.
TEST(Balance, MayBeBelowAlpha) {
  const BalanceSpec rule = Rule("recipe { router { balance { coefficient: 1 } } }").balance();
  const at::Tensor scores = at::tensor({0.51f, 0.49f, 0.51f, 0.49f, 0.02f, 0.98f}).view({3, 2});
  const BalanceInputs inputs = {.rule = &rule,
                                .score = &FindScore(SOFTMAX),
                                .logits = scores.log(),
                                .scores = scores,
                                .selected = SelectTopK(scores, 1)};
  const double expected = 2 * (2.0 / 3 * (1.04 / 3) + 1.0 / 3 * (1.96 / 3));
  EXPECT_NEAR(BalanceLoss(inputs), expected, 1e-6);
  EXPECT_LT(BalanceLoss(inputs), 1);
}

TEST(Balance, CountsAreTakenBeforeAnyDrop) {
  const at::Tensor logits = RandomLogits(40, 4);
  const Routing free =
      Router({.rule = Rule(), .experts = 4, .active = 2}).Route({.logits = logits});
  const Router limited({.rule = Rule("recipe { router { select { capacity_factor: 0.5 } } }"),
                        .experts = 4,
                        .active = 2});
  const Routing dropped = limited.Route({.logits = logits});
  EXPECT_GT(dropped.dropped, 0);
  EXPECT_EQ(dropped.counts, free.counts);
  EXPECT_DOUBLE_EQ(dropped.aux_loss, free.aux_loss);
  EXPECT_EQ(limited.Route({.logits = logits, .training = false}).dropped, 0);
}

TEST(Balance, ZLossIsTheMeanSquareOfLogSumExp) {
  const Router router({.rule = Rule("recipe { router { balance { coefficient: 0 z_loss: 0.5 } } }"),
                       .experts = 4,
                       .active = 2});
  const at::Tensor logits = RandomLogits(9, 4);
  EXPECT_NEAR(router.Route({.logits = logits}).aux_loss,
              0.5 * at::logsumexp(logits.to(at::kDouble), {1}).square().mean().item<double>(),
              1e-6);
}

TEST(Balance, NothingForNoTokens) {
  const Routing routing =
      Router({.rule = Rule(), .experts = 4, .active = 2}).Route({.logits = at::empty({0, 4})});
  EXPECT_EQ(routing.aux_loss, 0);
  EXPECT_THAT(routing.counts, ElementsAre(0, 0, 0, 0));
}

// capacity >= E / K takes every pair, so that it is the dropless layer.
TEST(Capacity, AFactorOfExpertsOverActiveDropsNothing) {
  const at::Tensor logits = RandomLogits(33, 6);
  const Router limited({.rule = Rule("recipe { router { select { capacity_factor: 3 } } }"),
                        .experts = 6,
                        .active = 2});
  const Routing routing = limited.Route({.logits = logits});
  EXPECT_EQ(routing.dropped, 0);
  EXPECT_TRUE(at::equal(
      routing.expert,
      Router({.rule = Rule(), .experts = 6, .active = 2}).Route({.logits = logits}).expert));
}

// A renormalised weight of one expert is the constant 1: no gradient but the balance loss's.
TEST(Weight, RenormalisedTopOneHasNoGradient) {
  const Router router({.rule = Rule(), .experts = 6, .active = 1});
  const RouteInputs inputs = {.logits = RandomLogits(12, 6)};
  const Routing routing = router.Route(inputs);
  const at::Tensor gradient = router.Backward(inputs, routing, at::ones({12, 1}), 0);
  EXPECT_LT(gradient.abs().max().item<float>(), 1e-6);
}

}  // namespace
}  // namespace moesaic
