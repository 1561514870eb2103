// DeepSeekMoE (arXiv 2401.06066) and its refinements. The gates of DeepSeek-V2 and V3 inside a
// model are held against autograd in transformer_test.cc, and over ranks in
// tests/equivalence/recipe_equality_test.cc.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/trainer/model/model_fixture.h"
#include "trainer/model/router/balance.h"
#include "trainer/model/router/bias.h"
#include "trainer/model/router/capacity.h"
#include "trainer/model/router/router.h"

namespace moesaic {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

at::Tensor RandomLogits(int64_t tokens, int64_t experts, uint64_t seed = 1) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn({tokens, experts}, generator, at::kFloat);
}

RouterSpec Rule(const std::string& router) {
  return SmallJob(absl::StrCat("recipe { router { ", router, " } }")).recipe().router();
}

at::Tensor ForwardOf(const JobSpec& spec, const SingleRankModel& model,
                     const std::vector<at::Tensor>& weights, const MicroBatch& batch, int layer) {
  FixedWeights source(model.catalog(), weights);
  PassScalars scalars;
  const PassOptions options;
  PassContext context = {&batch, &options, &source, &scalars, nullptr};
  const at::Tensor x = at::randn({batch.sequences * batch.length, spec.model().hidden()},
                                 at::make_generator<at::CPUGeneratorImpl>(7), at::kFloat);
  return model.transformer().feed_forward(layer).Forward({x, {}}, context).hidden - x;
}

TEST(DeepSeekMoe, DSM1_WithoutSegmentsOrSharedExpertsItIsTopKWithRawWeights) {
  const JobSpec ours =
      SmallJob("recipe { preset: 'deepseek_moe' experts { segments: 1 shared: 0 } }");
  const JobSpec plain = SmallJob("recipe { router { weight { renormalize: false } } }");
  const SingleRankModel a(ours), b(plain);
  ASSERT_EQ(a.catalog().Hash(), b.catalog().Hash());
  const auto weights = RandomWeights(a.catalog(), 5);
  const MicroBatch batch = RandomMicroBatch(ours, 0, 2);
  const auto leaves = [&](const SingleRankModel& model) {
    FixedWeights source(model.catalog(), weights);
    LeafSink sink(model.catalog());
    const PassOptions options;
    TransformerPass pass(model.transformer(), batch, options, source);
    pass.RunForward();
    pass.RunBackward(sink);
    return sink.leaves();
  };
  const auto of_a = leaves(a), of_b = leaves(b);
  ASSERT_EQ(of_a.size(), of_b.size());
  for (const auto& [leaf, value] : of_a) EXPECT_TRUE(at::equal(value, of_b.at(leaf)));
}

TEST(DeepSeekMoe, DSM2_SegmentsAndSharedExpertsConserveParameters) {
  const auto catalog = [](int segments, int shared) {
    return CatalogOf(SmallJob(
        absl::StrCat("recipe { experts { segments: ", segments, " shared: ", shared, " } }")));
  };
  const auto routers = [](const ParameterCatalog& of) {
    int64_t elements = 0;
    for (const ParameterSpec& spec : of.parameters()) {
      if (spec.kind == ParameterKind::kRouter) elements += spec.elements();
    }
    return elements;
  };
  const ParameterCatalog coarse = catalog(1, 0);
  for (const int segments : {1, 2, 3, 4, 12}) {
    for (int shared = 0; shared < 2 * segments; ++shared) {
      const ParameterCatalog fine = catalog(segments, shared);
      EXPECT_EQ(fine.experts(1), 5 * segments - shared);
      EXPECT_EQ(fine.total_elements() - routers(fine), coarse.total_elements() - routers(coarse));
      EXPECT_EQ(fine.active_elements() - routers(fine), coarse.active_elements() - routers(coarse));
    }
  }
}

// Rows of gate and of up, and columns of down, of one slice of a feed-forward.
std::pair<at::Tensor, at::Tensor> Slice(const at::Tensor& gate_up, const at::Tensor& down,
                                        int64_t slice, int64_t slices) {
  const int64_t width = down.size(1) / slices;
  const auto halves = gate_up.chunk(2, 0);
  return {at::cat({halves[0].narrow(0, slice * width, width),
                   halves[1].narrow(0, slice * width, width)}),
          down.narrow(1, slice * width, width).contiguous()};
}

at::Tensor SwiGluFeedForward(const at::Tensor& x, const at::Tensor& gate_up,
                             const at::Tensor& down) {
  const auto parts = at::matmul(x, gate_up.to(at::kDouble).t()).chunk(2, 1);
  return at::matmul(at::silu(parts[0]) * parts[1], down.to(at::kDouble).t());
}

// One expert of width 12, and its four slices as experts that are all on with weight 1.
TEST(DeepSeekMoe, DSM3_TheSlicesOfAFeedForwardSumToIt) {
  const JobSpec whole = SmallJob(
      "model { moe { experts: 1 active: 1 } } recipe { router { weight { renormalize: false } } }");
  const JobSpec cut = SmallJob(
      "model { moe { experts: 4 active: 4 expert_width: 3 } } "
      "recipe { router { score: SIGMOID weight { scale: 4 } } }");
  const SingleRankModel a(whole), b(cut);
  const auto of_a = RandomWeights(a.catalog(), 5);
  auto of_b = RandomWeights(b.catalog(), 5);
  const auto id = [](const SingleRankModel& m, const std::string& name) {
    return m.catalog().Find("layers.1." + name);
  };
  of_b[id(b, "feed_forward_norm")] = of_a[id(a, "feed_forward_norm")];
  of_b[id(b, "moe.router")].zero_();
  for (int e = 0; e < 4; ++e) {
    const std::string expert = absl::StrCat("moe.experts.", e);
    std::tie(of_b[id(b, expert + ".gate_up")], of_b[id(b, expert + ".down")]) =
        Slice(of_a[id(a, "moe.experts.0.gate_up")], of_a[id(a, "moe.experts.0.down")], e, 4);
  }
  const MicroBatch batch = RandomMicroBatch(whole, 0, 2);
  EXPECT_LT(RelativeError(ForwardOf(cut, b, of_b, batch, 1), ForwardOf(whole, a, of_a, batch, 1)),
            1e-6);
}

TEST(DeepSeekMoe, DSM4_TheFusedSharedExpertIsTheSumOfItsPartsWhateverTheRouterDoes) {
  const JobSpec spec =
      SmallJob("model { moe { shared_width: 12 } } recipe { preset: 'deepseek_v3' }");
  const SingleRankModel model(spec);
  auto weights = RandomWeights(model.catalog(), 5);
  const auto at_layer = [&](const std::string& name) -> at::Tensor& {
    return weights[model.catalog().Find("layers.1." + name)];
  };
  for (int e = 0; e < 5; ++e) at_layer(absl::StrCat("moe.experts.", e, ".down")).zero_();
  const MicroBatch batch = RandomMicroBatch(spec, 0, 2);
  const at::Tensor output = ForwardOf(spec, model, weights, batch, 1);

  at::Tensor x =
      at::randn({24, 16}, at::make_generator<at::CPUGeneratorImpl>(7), at::kFloat).to(at::kDouble);
  x = x * at::rsqrt(x.square().mean(-1, true) + spec.model().norm_epsilon()) *
      at_layer("feed_forward_norm").to(at::kDouble);
  at::Tensor sum = at::zeros_like(x);
  for (int shared = 0; shared < 3; ++shared) {
    const auto [gate_up, down] =
        Slice(at_layer("moe.shared.gate_up"), at_layer("moe.shared.down"), shared, 3);
    sum += SwiGluFeedForward(x, gate_up, down);
  }
  EXPECT_LT(RelativeError(output.to(at::kDouble), sum), 1e-5);
  at_layer("moe.router").mul_(-3);
  at_layer("moe.router_bias").add_(at::arange(5, at::kFloat));
  EXPECT_TRUE(at::equal(ForwardOf(spec, model, weights, batch, 1), output));
}

TEST(DeepSeekMoe, DSM5_WeightsOfAllExpertsSumToTheScaleOrToOne) {
  const at::Tensor logits = RandomLogits(50, 6);
  const Router sigmoid(
      {.rule = Rule("score: SIGMOID weight { scale: 2.5 }"), .experts = 6, .active = 6});
  const Router softmax({.rule = Rule("weight { renormalize: false }"), .experts = 6, .active = 6});
  const at::Tensor scaled = sigmoid.Route({.logits = logits}).weight.sum(1);
  EXPECT_LT(RelativeError(scaled, at::full({50}, 2.5)), 1e-6);
  EXPECT_LT(RelativeError(softmax.Route({.logits = logits}).weight.sum(1), at::ones({50})), 1e-6);
}

struct Losses {
  BalanceSpec rule;
  at::Tensor scores;
  at::Tensor selected;
  int64_t groups = 2;
  int64_t group_limit = 2;

  BalanceInputs Inputs() const {
    return {.rule = &rule,
            .score = &FindScore(SOFTMAX),
            .logits = scores.log(),
            .scores = scores,
            .selected = selected,
            .groups = groups,
            .group_limit = group_limit};
  }
  at::Tensor Gradient() const {
    at::Tensor dscores = at::zeros_like(scores), dlogits = at::zeros_like(scores);
    BalanceLossBackward(Inputs(), 1, dscores, dlogits);
    at::Tensor through = at::empty_like(scores);
    FindScore(SOFTMAX).backward(scores, dscores, through);
    return through;
  }
};

BalanceSpec OnlyExperts(double alpha) {
  return Rule(absl::StrCat("balance { coefficient: ", alpha, " }")).balance();
}
BalanceSpec OnlyGroups(double alpha) {
  return Rule(absl::StrCat("balance { coefficient: 0 group_coefficient: ", alpha, " }")).balance();
}
BalanceSpec OnlySends(double alpha) {
  return Rule(absl::StrCat("balance { coefficient: 0 communication: ", alpha, " }")).balance();
}

TEST(DeepSeekMoe, DSM6_EachLossIsItsCoefficientWhereCountsOrProbabilitiesAreUniform) {
  const at::Tensor uniform = at::full({12, 4}, 0.25, at::kFloat);
  const at::Tensor any = at::softmax(RandomLogits(12, 4), 1);
  const at::Tensor any_selected = SelectTopK(RandomLogits(12, 4, 9), 2);
  // Each expert six times, each token in both groups of two.
  const at::Tensor even =
      at::tensor({0, 2, 1, 3}, at::kLong).view({2, 2}).repeat({6, 1}).contiguous();
  for (const BalanceSpec& rule : {OnlyExperts(0.3), OnlyGroups(0.3), OnlySends(0.3)}) {
    EXPECT_NEAR(BalanceLoss(Losses{rule, any, even}.Inputs()), 0.3, 1e-6);
  }
  // Of any counts, where probabilities are uniform; sends must add up to M T.
  for (const BalanceSpec& rule : {OnlyExperts(0.3), OnlyGroups(0.3)}) {
    EXPECT_NEAR(BalanceLoss(Losses{rule, uniform, any_selected}.Inputs()), 0.3, 1e-6);
  }
  const at::Tensor one_group = SelectTopK(RandomLogits(12, 4, 3), 1);
  EXPECT_NEAR(BalanceLoss(Losses{OnlySends(0.3), uniform, one_group, 2, 1}.Inputs()), 0.3, 1e-6);
}

TEST(DeepSeekMoe, DSM7_OneGroupIsConstantAndAGroupAnExpertIsTheExpertLoss) {
  const at::Tensor scores = at::softmax(RandomLogits(30, 6), 1);
  const at::Tensor selected = SelectTopK(scores, 2);
  const Losses constant{OnlyGroups(0.05), scores, selected, 1, 1};
  EXPECT_NEAR(BalanceLoss(constant.Inputs()), 0.05, 1e-7);
  EXPECT_LT(constant.Gradient().abs().max().item<float>(), 1e-8);

  const Losses by_group{OnlyGroups(0.05), scores, selected, 6, 6};
  const Losses by_expert{OnlyExperts(0.003), scores, selected};
  EXPECT_NEAR(BalanceLoss(by_group.Inputs()), BalanceLoss(by_expert.Inputs()) * (0.05 / 0.003),
              1e-7);
  EXPECT_LT(RelativeError(by_group.Gradient(), by_expert.Gradient() * (0.05 / 0.003)), 1e-5);
}

TEST(DeepSeekMoe, DSM8_GroupLimitedRouting) {
  const at::Tensor logits = RandomLogits(200, 12);
  const Router free({.rule = Rule("weight { renormalize: false }"), .experts = 12, .active = 3});
  const at::Tensor unrestricted = free.Route({.logits = logits}).selected;
  for (const char* score : {"BEST", "TOP_SUM"}) {
    const auto limited = [&](int limit) {
      return Router({.rule = Rule(absl::StrCat("select { groups: 4 group_limit: ", limit,
                                               " group_score: ", score, " }")),
                     .experts = 12,
                     .active = 3})
          .Route({.logits = logits})
          .selected;
    };
    EXPECT_TRUE(at::equal(limited(4), unrestricted));
    for (const int limit : {1, 2, 3}) {
      const at::Tensor selected = limited(limit);
      for (int64_t t = 0; t < 200; ++t) {
        std::set<int64_t> groups;
        for (int64_t k = 0; k < 3; ++k) groups.insert(selected[t][k].item<int64_t>() / 3);
        EXPECT_LE(groups.size(), static_cast<size_t>(limit));
      }
    }
  }
}

// Filling what is not allowed with 0 instead would pick it here.
TEST(DeepSeekMoe, DSM8_NegativeScoresOfAllowedExpertsStillWin) {
  const Router router(
      {.rule = Rule("score: SIGMOID select { groups: 2 group_limit: 1 group_score: TOP_SUM }"),
       .experts = 4,
       .active = 2});
  const at::Tensor bias = at::tensor({-2.0f, -2.0f, -3.0f, -3.0f});
  const Routing routing = router.Route({.logits = at::zeros({1, 4}), .bias = bias});
  EXPECT_EQ(routing.selected[0][0].item<int64_t>(), 0);
  EXPECT_EQ(routing.selected[0][1].item<int64_t>(), 1);
}

// Group 0 has the best expert, group 1 the better pair.
TEST(DeepSeekMoe, GroupsAreScoredByTheirBestExpertOrBySeveral) {
  at::Tensor by_best = at::tensor({0.9f, 0.1f, 0.6f, 0.5f}).view({1, 4});
  at::Tensor by_sum = by_best.clone();
  MaskGroups({.groups = 2, .limit = 1, .score = BEST}, 2, by_best);
  MaskGroups({.groups = 2, .limit = 1, .score = TOP_SUM}, 2, by_sum);
  EXPECT_TRUE(at::equal(by_best, at::tensor({0.9f, 0.1f, -kInfinity, -kInfinity}).view({1, 4})));
  EXPECT_TRUE(at::equal(by_sum, at::tensor({-kInfinity, -kInfinity, 0.6f, 0.5f}).view({1, 4})));
}

TEST(DeepSeekMoe, DSM9_TheBiasMovesAgainstTheLoadByTheSpeed) {
  const BiasSpec sign = Rule("balance { bias { speed: 0.25 } }").balance().bias();
  const std::vector<double> counts = {8, 2, 5, 5};
  std::vector<float> bias = {1, 1, 1, 1};
  MoveBias(sign, 3, counts, {}, bias);
  EXPECT_THAT(bias, ElementsAre(0.75f, 1.25f, 1, 1));

  BiasSpec proportional = sign;
  proportional.set_rule(PROPORTIONAL);
  bias = {0, 0, 0, 0};
  MoveBias(proportional, 3, counts, {}, bias);
  EXPECT_THAT(bias, ElementsAre(-0.15f, 0.15f, 0, 0));

  BiasSpec ended = sign;
  ended.set_until_step(3);
  MoveBias(ended, 3, counts, {}, bias);
  EXPECT_THAT(bias, ElementsAre(-0.15f, 0.15f, 0, 0));
  MoveBias(sign, 3, std::vector<double>(4, 0.0), {}, bias);
  EXPECT_THAT(bias, ElementsAre(-0.15f, 0.15f, 0, 0));
}

// With ReXMoE's schedule of candidates: the mean is of what could be chosen.
TEST(DeepSeekMoe, DSM9_TheBiasOfWhatCouldNotBeChosenStays) {
  const BiasSpec sign = Rule("balance { bias { speed: 0.25 } }").balance().bias();
  const bool candidates[] = {true, false, true, false};
  std::vector<float> bias = {0, 0, 0, 0};
  MoveBias(sign, 3, std::vector<double>{8, 0, 6, 0}, candidates, bias);
  EXPECT_THAT(bias, ElementsAre(-0.25f, 0, 0.25f, 0));
}

TEST(DeepSeekMoe, DSM9_TheBiasCountsInTheSelectionOnly) {
  const Router router({.rule = Rule("score: SIGMOID"), .experts = 6, .active = 2});
  const at::Tensor logits = RandomLogits(64, 6);
  const at::Tensor bias = at::tensor({0.3f, -0.1f, 0.0f, 0.2f, 0.0f, -0.4f});
  const Routing biased = router.Route({.logits = logits, .bias = bias});
  const Routing plain = router.Route({.logits = logits});
  EXPECT_FALSE(at::equal(biased.selected, plain.selected));
  EXPECT_TRUE(at::equal(biased.scores, plain.scores));
  // A uniform shift selects the same; weights are those of the scores alone.
  const Routing shifted = router.Route({.logits = logits, .bias = bias + 7});
  EXPECT_TRUE(at::equal(shifted.selected, biased.selected));
  EXPECT_TRUE(at::equal(shifted.weight, biased.weight));
}

TEST(DeepSeekMoe, DSM9_TheBiasIsNoLearntParameter) {
  const ParameterCatalog catalog = CatalogOf(SmallJob("recipe { preset: 'deepseek_v3' }"));
  const ParameterSpec& bias = catalog[catalog.Find("layers.1.moe.router_bias")];
  EXPECT_THAT(bias.shape, ElementsAre(5));
  EXPECT_FALSE(bias.learnt);
  EXPECT_FALSE(bias.decay);
  EXPECT_TRUE(bias.fp32);
}

// Frozen scores that want a few experts; what is left is an oscillation of a few moves.
TEST(DeepSeekMoe, DSM11_TheLoopBalancesSkewedScores) {
  constexpr int64_t kExperts = 16;
  const BiasSpec rule = Rule("balance { bias { speed: 0.005 } }").balance().bias();
  const Router router({.rule = Rule("score: SIGMOID balance { coefficient: 0 }"),
                       .experts = kExperts,
                       .active = 2});
  const at::Tensor logits =
      RandomLogits(2048, kExperts) + at::linspace(-2, 2, kExperts, at::kFloat);
  at::Tensor bias = at::zeros({kExperts});
  const auto violation = [&] {
    const std::vector<int64_t> counts = router.Route({.logits = logits, .bias = bias}).counts;
    const std::vector<double> loads(counts.begin(), counts.end());
    MoveBias(rule, 0, loads, {}, {bias.data_ptr<float>(), static_cast<size_t>(kExperts)});
    const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / kExperts;
    return *std::max_element(loads.begin(), loads.end()) / mean - 1;
  };
  EXPECT_GT(violation(), 2);
  for (int step = 0; step < 300; ++step) violation();
  EXPECT_LT(violation(), 0.15);
}

TEST(DeepSeekMoe, DSM12_RenormalisedTopOneGivesTheRouterNoGradient) {
  for (const bool renormalize : {true, false}) {
    const Router router({.rule = Rule(absl::StrCat("weight { renormalize: ", renormalize,
                                                   " } balance { coefficient: 0 }")),
                         .experts = 6,
                         .active = 1});
    const RouteInputs inputs = {.logits = RandomLogits(12, 6)};
    const Routing routing = router.Route(inputs);
    const double largest =
        router.Backward(inputs, routing, at::ones({12, 1}), 1).abs().max().item<double>();
    EXPECT_EQ(largest < 1e-6, renormalize) << largest;
  }
}

TEST(DeepSeekMoe, DSM13_ABiasDoesNotChangeTheSequenceLoss) {
  const Router router({.rule = Rule("score: SIGMOID balance { coefficient: 0.5 scope: SEQUENCE }"),
                       .experts = 6,
                       .active = 2});
  const at::Tensor logits = RandomLogits(24, 6);
  const Routing plain = router.Route({.logits = logits, .sequences = 2});
  const Routing biased = router.Route({.logits = logits,
                                       .sequences = 2,
                                       .bias = at::tensor({1.0f, 0.0f, 0.0f, 0.0f, -1.0f, 0.0f})});
  EXPECT_NE(biased.counts, plain.counts);
  EXPECT_EQ(biased.aux_loss, plain.aux_loss);
}

// With the coefficient at 0 before or after, too, where a loss over groups remains.
TEST(DeepSeekMoe, DSM13_ABiasChangesNoLossWhateverTheCoefficientIsInAStep) {
  for (const char* coefficients : {"coefficient: 0 later { step: 7 coefficient: 0.5 }",
                                   "coefficient: 0.5 later { step: 7 coefficient: 0 }"}) {
    const Router router({.rule = Rule(absl::StrCat("score: SIGMOID balance { groups: 2 "
                                                   "group_coefficient: 0.3 ",
                                                   coefficients, " }")),
                         .experts = 6,
                         .active = 2});
    for (const uint64_t step : {6, 7}) {
      RouteInputs inputs = {.logits = RandomLogits(24, 6), .step = step};
      const Routing plain = router.Route(inputs);
      inputs.bias = at::tensor({1.0f, 0.0f, 0.0f, 0.0f, -1.0f, 0.0f});
      const Routing biased = router.Route(inputs);
      EXPECT_NE(biased.counts, plain.counts);
      EXPECT_EQ(biased.aux_loss, plain.aux_loss) << coefficients << ", step " << step;
    }
  }
}

// The load is there when the loss begins to count it.
TEST(DeepSeekMoe, ALossThatBeginsLaterTakesTheLoadOfTheStepBefore) {
  const std::string global = "balance { scope: GLOBAL coefficient: ";
  const Router later(
      {.rule = Rule(global + "0 later { step: 7 coefficient: 0.5 } }"), .experts = 6, .active = 2});
  const Router always({.rule = Rule(global + "0.5 }"), .experts = 6, .active = 2});
  RouteInputs inputs = {.logits = RandomLogits(24, 6),
                        .step = 6,
                        .load = at::tensor({9.0f, 3.0f, 1.0f, 0.0f, 5.0f, 2.0f})};
  EXPECT_EQ(later.Route(inputs).aux_loss, 0);
  inputs.step = 7;
  EXPECT_GT(later.Route(inputs).aux_loss, 0);
  EXPECT_EQ(later.Route(inputs).aux_loss, always.Route(inputs).aux_loss);
}

TEST(DeepSeekMoe, TheSequenceLossIsTheMeanOfEachSequenceByItself) {
  const at::Tensor logits = RandomLogits(24, 6);
  const Router whole({.rule = Rule("balance { coefficient: 0.5 }"), .experts = 6, .active = 2});
  const Router parts(
      {.rule = Rule("balance { coefficient: 0.5 scope: SEQUENCE }"), .experts = 6, .active = 2});
  double mean = 0;
  for (int64_t s = 0; s < 3; ++s) {
    mean += whole.Route({.logits = logits.narrow(0, 8 * s, 8)}).aux_loss / 3;
  }
  EXPECT_NEAR(parts.Route({.logits = logits, .sequences = 3}).aux_loss, mean, 1e-9);
}

TEST(Capacity, TheLowestScoresAreDroppedOfAGroup) {
  // Experts 0 and 1 are one bin of two pairs; token 1 is exempt, and counts.
  const at::Tensor scores = at::tensor({0.5f, 0.1f, 0.9f, 0.1f,  //
                                        0.1f, 0.2f, 0.9f, 0.1f,  //
                                        0.1f, 0.6f, 0.9f, 0.1f})
                                .view({3, 4});
  const at::Tensor chosen = at::tensor({0, 2, 1, 2, 1, 2}, at::kLong).view({3, 2});
  at::Tensor by_score = chosen.clone();
  EXPECT_EQ(DropBeyondCapacity({.capacity = 2, .bins = 2, .order = LOWEST}, scores, by_score), 2);
  EXPECT_EQ(by_score[1][0].item<int64_t>(), -1);  // 0.2 of 0.5, 0.2, 0.6
  EXPECT_EQ(by_score[2][1].item<int64_t>(), -1);  // the last of equal ones
  at::Tensor exempt = chosen.clone();
  EXPECT_EQ(DropBeyondCapacity(
                {.capacity = 2, .bins = 2, .order = LOWEST, .exempt = {false, true, false}}, scores,
                exempt),
            2);
  EXPECT_EQ(exempt[1][0].item<int64_t>(), 1);
  EXPECT_EQ(exempt[0][0].item<int64_t>(), -1);  // 0.5 of 0.5 and 0.6, for one place
}

TEST(Capacity, SequencesAreExemptBySeedAndSample) {
  const RouterSpec rule = Rule("select { capacity_factor: 0.01 drop: LOWEST never_dropped: 0.5 }");
  const Router router({.rule = rule, .experts = 4, .active = 1});
  const auto kept = [&](int64_t first_sample, int64_t sequences) {
    const Routing routing = router.Route({.logits = at::zeros({sequences * 3, 4}),
                                          .sequences = sequences,
                                          .first_sample = first_sample});
    return routing.expert.view({sequences, 3}).ge(0).all(1);
  };
  const at::Tensor together = kept(10, 64);
  EXPECT_TRUE(at::equal(kept(26, 48), together.narrow(0, 16, 48)));  // whatever the micro-batch
  const int64_t exempt = together.sum().item<int64_t>();
  EXPECT_GT(exempt, 20);
  EXPECT_LT(exempt, 44);
}

}  // namespace
}  // namespace moesaic
