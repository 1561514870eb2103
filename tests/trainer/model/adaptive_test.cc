// Recipes whose tokens take as many experts as they need: AdaMoE's null experts, and top-p.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/trainer/model/model_fixture.h"
#include "trainer/model/router/observe.h"
#include "trainer/model/router/router.h"

namespace moesaic {
namespace {

RouterSpec Rule(const std::string& preset, const std::string& router = "") {
  return SmallJob(absl::StrCat("recipe { preset: '", preset, "' router { ", router, " } }"))
      .recipe()
      .router();
}

Router AdaMoe(int64_t experts, int64_t nulls, int64_t active, const std::string& router = "") {
  return Router({.rule = Rule("adamoe", router),
                 .experts = experts,
                 .nulls = nulls,
                 .active = active});
}

at::Tensor RandomLogits(int64_t tokens, int64_t experts, uint64_t seed = 1) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn({tokens, experts}, generator, at::kFloat);
}

int64_t Pairs(const at::Tensor& selected) { return selected.ge(0).sum().item<int64_t>(); }

// The gradient at the logits against differences of (weights . towards + aux_loss), at points where
// no small step changes what is chosen.
void ExpectGradientOfDefinition(const Router& router, at::Tensor logits) {
  const Routing routing = router.Route({.logits = logits});
  const at::Tensor towards = RandomLogits(routing.weight.size(0), routing.weight.size(1), 9);
  const at::Tensor dweight = towards * routing.selected.ge(0);
  const auto value = [&] {
    const Routing at_point = router.Route({.logits = logits});
    EXPECT_TRUE(at::equal(at_point.selected, routing.selected)) << "the step is too large";
    return (at_point.weight.to(at::kDouble) * dweight).sum().item<double>() +
           0.7 * at_point.aux_loss;
  };
  const at::Tensor gradient = router.Backward({.logits = logits}, routing, dweight, 0.7);
  constexpr float kStep = 2e-3;
  for (int64_t i = 0; i < logits.numel(); ++i) {
    float& logit = logits.data_ptr<float>()[i];
    const float before = logit;
    logit = before + kStep;
    const double up = value();
    logit = before - kStep;
    const double down = value();
    logit = before;
    EXPECT_NEAR(gradient.view(-1)[i].item<float>(), (up - down) / (2 * kStep), 1e-3) << i;
  }
}

// --- AdaMoE --------------------------------------------------------------------------------------

TEST(AdaMoe, ADA1_WithoutNullExpertsItIsRenormalisedTopK) {
  const JobSpec ours = SmallJob("recipe { preset: 'adamoe' experts { null_experts: 0 } }");
  const JobSpec plain = SmallJob();
  const SingleRankModel a(ours), b(plain);
  ASSERT_EQ(a.catalog().Hash(), b.catalog().Hash());
  const at::Tensor logits = RandomLogits(64, 6);
  const Routing adamoe = AdaMoe(6, 0, 3).Route({.logits = logits});
  const Routing top_k =
      Router({.rule = Rule("top_k"), .experts = 6, .active = 3}).Route({.logits = logits});
  EXPECT_TRUE(at::equal(adamoe.expert, top_k.expert));
  EXPECT_TRUE(at::equal(adamoe.weight, top_k.weight));
  EXPECT_EQ(adamoe.aux_loss, top_k.aux_loss);
}

TEST(AdaMoe, ADA2_WhichNullExpertIsChosenDoesNotMatter) {
  const Router router = AdaMoe(5, 4, 3);
  const at::Tensor logits = RandomLogits(80, 9);
  const Routing routing = router.Route({.logits = logits});
  ASSERT_GT(routing.nulls, 20);
  const at::Tensor order = at::tensor({0, 1, 2, 3, 4, 7, 5, 8, 6}, at::kLong);
  const Routing permuted = router.Route({.logits = logits.index_select(1, order)});
  EXPECT_TRUE(at::equal(permuted.expert, routing.expert));
  EXPECT_LT(RelativeError(permuted.weight, routing.weight), 1e-6);
  EXPECT_NEAR(permuted.aux_loss, routing.aux_loss, 1e-9);
  EXPECT_EQ(permuted.nulls, routing.nulls);

  const BalanceSpec rule = Rule("adamoe").balance();
  BalanceInputs inputs = {.rule = &rule,
                          .score = &FindScore(SOFTMAX),
                          .logits = logits,
                          .scores = routing.scores,
                          .selected = routing.balanced,
                          .nulls = 4};
  EXPECT_EQ(BalanceLoss(inputs), routing.aux_loss);
  inputs.selected = at::where(routing.balanced.ge(5), 5, routing.balanced);  // all onto one
  EXPECT_NEAR(BalanceLoss(inputs), routing.aux_loss, 1e-9);
  inputs.nulls = 0;  // by itself, each null expert would count
  EXPECT_GT(std::abs(BalanceLoss(inputs) - routing.aux_loss), 1e-5);
}

// In the paper's scale, where f sums up to k, the loss is k times that.
TEST(AdaMoe, ADA3_TheLossIsItsCoefficientAtBalance) {
  const Router router = AdaMoe(6, 2, 4, "balance { coefficient: 0.3 }");
  EXPECT_NEAR(router.Route({.logits = at::zeros({10, 8})}).aux_loss, 0.3, 1e-7);
  // Loads that are balanced, with real and null experts alike: token t takes 4 in a row from t on.
  at::Tensor logits = at::zeros({8, 8});
  for (int64_t t = 0; t < 8; ++t) {
    for (int64_t k = 0; k < 4; ++k) logits[t][(t + k) % 8] = 3 - 0.1 * static_cast<double>(k);
  }
  const Routing routing = router.Route({.logits = logits});
  EXPECT_THAT(routing.counts, ::testing::Each(4));
  EXPECT_EQ(routing.nulls, 8);
  EXPECT_NEAR(routing.aux_loss, 0.3, 1e-6);
}

// Choice, loss and gradient are those of a rule that always had the step's coefficient.
TEST(AdaMoe, ADA9_TheLaterCoefficientCountsFromItsStepOn) {
  const at::Tensor logits = RandomLogits(40, 9);
  for (const auto& [first, later] : {std::pair("0.02", "1e-4"), {"0", "0.3"}, {"0.3", "0"}}) {
    const Router scheduled = AdaMoe(5, 4, 3,
                                    absl::StrCat("balance { coefficient: ", first,
                                                 " later { step: 7 coefficient: ", later, " } }"));
    for (const auto& [step, now] : {std::pair(6u, first), {7u, later}, {8u, later}}) {
      SCOPED_TRACE(absl::StrCat(first, ", then ", later, ", step ", step));
      const Router constant = AdaMoe(5, 4, 3, absl::StrCat("balance { coefficient: ", now, " }"));
      const RouteInputs inputs = {.logits = logits, .step = step};
      const Routing routing = scheduled.Route(inputs), expected = constant.Route(inputs);
      EXPECT_TRUE(at::equal(routing.expert, expected.expert));
      EXPECT_EQ(routing.aux_loss, expected.aux_loss);
      const at::Tensor dweight = RandomLogits(40, 3, 9) * routing.selected.ge(0);
      EXPECT_TRUE(at::equal(scheduled.Backward(inputs, routing, dweight, 0.7),
                            constant.Backward(inputs, expected, dweight, 0.7)));
    }
  }
}

TEST(AdaMoe, ADA4_ATokenWithNullExpertsAloneGetsExactlyZero) {
  const JobSpec spec = SmallJob(
      "model { moe { pattern { every: 1 first: 0 } } } "
      "recipe { preset: 'adamoe' experts { null_experts: 20 } }");
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  FixedWeights source(model.catalog(), weights);
  const MicroBatch batch = RandomMicroBatch(spec, 0, 2);
  const PassOptions options = {.note_best = true};
  PassScalars scalars;
  Block& block = model.transformer().feed_forward(0);
  PassContext context;
  context.micro_batch = &batch;
  context.options = &options;
  context.weights = &source;
  context.scalars = &scalars;
  const Bundle in = {RandomLogits(24, spec.model().hidden(), 3), {}};
  const at::Tensor before = in.hidden.clone();
  const Bundle out = block.Forward(in, context);
  const LayerRouting& seen = scalars.routing[0];
  ASSERT_GT(seen.fan_out[0], 0);
  ASSERT_GT(seen.fan_out[1], 0);
  for (int64_t t = 0; t < 24; ++t) {
    const bool none = seen.best[t] == 5;
    EXPECT_EQ(at::equal(out.hidden[t], before[t]), none) << t;
  }
  const Bundle grad = block.BackwardInput({at::ones_like(out.hidden), {}}, context);
  EXPECT_TRUE(grad.hidden.isfinite().all().item<bool>());

  // All tokens, and scores of real experts that vanish.
  at::Tensor logits = RandomLogits(6, 8);
  logits.narrow(1, 0, 4) -= 200;
  const Router router = AdaMoe(4, 4, 3, "balance { entropy: 0.1 z_loss: 0.01 }");
  const Routing routing = router.Route({.logits = logits});
  EXPECT_EQ(Pairs(routing.expert), 0);
  EXPECT_TRUE(routing.weight.eq(0).all().item<bool>());
  EXPECT_TRUE(std::isfinite(routing.aux_loss));
  const at::Tensor dlogits =
      router.Backward({.logits = logits}, routing, at::zeros_like(routing.weight), 1);
  EXPECT_TRUE(dlogits.isfinite().all().item<bool>());
}

TEST(AdaMoe, ADA5_WeightsOfTheRealExpertsSumToOne) {
  const Routing routing = AdaMoe(5, 4, 3).Route({.logits = RandomLogits(80, 9)});
  const at::Tensor real = routing.expert.ge(0);
  const at::Tensor sums = (routing.weight * real).sum(1);
  const at::Tensor some = real.any(1);
  EXPECT_FALSE(some.all().item<bool>());
  EXPECT_TRUE(at::allclose(sums, some.to(at::kFloat), 1e-6, 1e-6));
  // In proportion to the scores.
  const at::Tensor scores = routing.scores.gather(1, routing.expert.clamp_min(0)) * real;
  const at::Tensor expected = scores / scores.sum(1, /*keepdim=*/true).clamp_min(1e-20);
  EXPECT_LT(RelativeError(routing.weight * real, expected), 1e-5);
}

TEST(AdaMoe, ADA6_RowsAreWhatWasChosenWithoutTheNullExperts) {
  const JobSpec spec = SmallJob("recipe { preset: 'adamoe' experts { null_experts: 5 } }");
  const SingleRankModel model(spec);
  FixedWeights source(model.catalog(), RandomWeights(model.catalog(), 5));
  const MicroBatch batch = RandomMicroBatch(spec, 0, 2);
  const PassOptions options;
  TransformerPass pass(model.transformer(), batch, options, source);
  pass.RunForward();
  const LayerRouting& seen = pass.scalars().routing[0];
  int64_t rows = 0;
  for (const int64_t count : seen.counts) rows += count;
  ASSERT_EQ(seen.counts.size(), 5u);
  EXPECT_GT(seen.nulls, 0);
  EXPECT_EQ(rows, 24 * 2 - seen.nulls);
}

TEST(AdaMoe, ADA8_TheGradientIsThatOfTheDefinition) {
  ExpectGradientOfDefinition(AdaMoe(4, 3, 3, "balance { coefficient: 0.5 }"),
                             RandomLogits(9, 7) * 2);
  ExpectGradientOfDefinition(
      AdaMoe(4, 3, 3, "score: SIGMOID balance { coefficient: 0.5 z_loss: 0.1 entropy: 0.2 }"),
      RandomLogits(9, 7) * 2);
}

TEST(AdaMoe, ACapacityIsOfAllThatCanBeChosen) {
  // ceil(1 * 40 * 4 / (5 + 5)) = 16 pairs an expert; null experts take all that comes.
  at::Tensor logits = RandomLogits(40, 10) * 0.1;
  logits.select(1, 2) += 5;
  logits.select(1, 7) += 4;
  const Routing routing =
      AdaMoe(5, 5, 4, "select { capacity_factor: 1 }").Route({.logits = logits});
  EXPECT_EQ(routing.counts[2], 40);
  EXPECT_EQ(routing.expert.eq(2).sum().item<int64_t>(), 16);
  EXPECT_GE(routing.nulls, 40);
  EXPECT_EQ(Pairs(routing.expert), 160 - routing.nulls - routing.dropped);
}

// --- top-p ---------------------------------------------------------------------------------------

at::Tensor Softmax(const at::Tensor& logits) { return at::softmax(logits, 1); }

// How many each token takes.
at::Tensor Taken(const at::Tensor& scores, double share, int64_t most) {
  return SelectTopP(scores, share, most).ge(0).sum(1);
}

TEST(TopP, TOPP1_AVanishingShareIsTheBestExpertAndMoreThanOneIsAll) {
  const at::Tensor scores = Softmax(RandomLogits(60, 7));
  EXPECT_TRUE(at::equal(SelectTopP(scores, 1e-9, 7), SelectTopK(scores, 1)));
  EXPECT_TRUE(at::equal(SelectTopP(scores, 1.1, 7), SelectTopK(scores, 7)));
}

TEST(TopP, TOPP2_MoreOfTheShareTakesNoFewerAndSharperLogitsNoMore) {
  const at::Tensor logits = RandomLogits(200, 12);
  at::Tensor before = at::ones({200}, at::kLong);
  for (double share = 0.05; share < 1; share += 0.05) {
    const at::Tensor taken = Taken(Softmax(logits), share, 12);
    EXPECT_TRUE(taken.ge(before).all().item<bool>()) << share;
    before = taken;
  }
  EXPECT_GT(before.max().item<int64_t>(), before.min().item<int64_t>());
  before = at::full({200}, 12, at::kLong);
  for (const double scale : {0.1, 0.5, 1.0, 2.0, 5.0, 30.0}) {
    const at::Tensor taken = Taken(Softmax(logits * scale), 0.6, 12);
    EXPECT_TRUE(taken.le(before).all().item<bool>()) << scale;
    before = taken;
  }
}

TEST(TopP, TOPP3_WhatIsTakenReachesTheShareAndWithoutTheLastDoesNot) {
  const at::Tensor scores = Softmax(RandomLogits(300, 9));
  constexpr double kShare = 0.55;
  const at::Tensor selected = SelectTopP(scores, kShare, 9);
  for (int64_t t = 0; t < 300; ++t) {
    double sum = 0, last = 0;
    for (int64_t k = 0; k < selected.size(1); ++k) {
      const int64_t e = selected[t][k].item<int64_t>();
      if (e < 0) continue;
      last = scores[t][e].item<float>();
      sum += last;
    }
    EXPECT_GE(sum, kShare) << t;
    EXPECT_LT(sum - last, kShare) << t;
  }
}

TEST(TopP, TOPP4_AtMostTheShareOfAllExpertsAndNeverMoreThanActive) {
  EXPECT_EQ(Taken(Softmax(RandomLogits(2000, 16) * 0.001), 0.4, 16).max().item<int64_t>(), 7);
  for (const double share : {0.1, 0.4, 0.7}) {
    const auto most = static_cast<int64_t>(std::ceil(share * 16));
    EXPECT_LE(Taken(Softmax(RandomLogits(500, 16, 3)), share, 16).max().item<int64_t>(), most);
  }
  const Router router({.rule = Rule("top_p", "select { top_p: 0.9 }"), .experts = 16, .active = 3});
  const Routing routing = router.Route({.logits = RandomLogits(100, 16)});
  EXPECT_EQ(routing.selected.ge(0).sum(1).max().item<int64_t>(), 3);
}

TEST(TopP, TOPP5_TheEntropyLossIsZeroWhenSureAndLogEWhenUndecided) {
  const Router router({.rule = Rule("top_p", "balance { coefficient: 0 entropy: 0.5 }"),
                       .experts = 8,
                       .active = 4});
  EXPECT_NEAR(router.Route({.logits = at::zeros({5, 8})}).aux_loss, 0.5 * std::log(8), 1e-6);
  at::Tensor sure = at::zeros({5, 8});
  sure.select(1, 3) += 200;
  EXPECT_EQ(router.Route({.logits = sure}).aux_loss, 0);
  const Routing routing = router.Route({.logits = sure});
  EXPECT_TRUE(router.Backward({.logits = sure}, routing, at::zeros_like(routing.weight), 1)
                  .isfinite()
                  .all()
                  .item<bool>());
}

TEST(TopP, TOPP6_TiesGoToTheLowestExpert) {
  const at::Tensor scores = at::tensor({0.2f, 0.3f, 0.2f, 0.3f,  //
                                        0.25f, 0.25f, 0.25f, 0.25f})
                                .view({2, 4});
  EXPECT_TRUE(at::equal(SelectTopP(scores, 0.7, 4),
                        at::tensor({1, 3, 0, 0, 1, 2}, at::kLong).view({2, 3})));
  const at::Tensor none = at::full({1, 4}, std::nanf(""), at::kFloat);
  EXPECT_TRUE(at::equal(SelectTopP(none, 0.5, 3), at::tensor({0, 1, 2}, at::kLong).view({1, 3})));
  EXPECT_EQ(SelectTopP(at::empty({0, 4}), 0.5, 3).size(0), 0);
}

TEST(TopP, TOPP8_WeightsAreTheProbabilitiesAndTheGradientIsThatOfTheDefinition) {
  const Router router({.rule = Rule("top_p",
                                    "select { top_p: 0.6 } balance { coefficient: 0.5 "
                                    "entropy: 0.3 }"),
                       .experts = 6,
                       .active = 5});
  const at::Tensor logits = RandomLogits(12, 6, 4);
  const Routing routing = router.Route({.logits = logits});
  const at::Tensor taken = routing.selected.ge(0);
  EXPECT_GT(taken.sum(1).max().item<int64_t>(), taken.sum(1).min().item<int64_t>());
  const at::Tensor expected = routing.scores.gather(1, routing.selected.clamp_min(0)) * taken;
  EXPECT_TRUE(at::equal(routing.weight * taken, expected));
  ExpectGradientOfDefinition(router, logits);
}

// --- what metrics are told -----------------------------------------------------------------------

TEST(Observe, AddsUpWhatTokensDid) {
  const Router router = AdaMoe(5, 4, 3);
  const Routing routing = router.Route({.logits = RandomLogits(80, 9)});
  const LayerRouting seen = Observe(routing, /*best=*/true);
  EXPECT_EQ(seen.counts, routing.counts);
  ASSERT_EQ(seen.fan_out.size(), 4u);
  int64_t tokens = 0, pairs = 0;
  for (int64_t k = 0; k < 4; ++k) {
    EXPECT_EQ(seen.fan_out[k], routing.expert.ge(0).sum(1).eq(k).sum().item<int64_t>()) << k;
    tokens += seen.fan_out[k];
    pairs += k * seen.fan_out[k];
  }
  EXPECT_EQ(tokens, 80);
  EXPECT_EQ(pairs + seen.nulls, 240);
  const at::Tensor p = at::softmax(RandomLogits(80, 9).to(at::kDouble), 1);
  const double entropy = -(p * p.log()).sum().item<double>();
  EXPECT_NEAR(static_cast<double>(seen.entropy) / kEntropyUnit, entropy, 1e-4);
  for (int64_t t = 0; t < 80; ++t) {
    const int64_t first = routing.expert[t].max().item<int64_t>() < 0
                              ? 5
                              : routing.scores[t].narrow(0, 0, 5).argmax().item<int64_t>();
    EXPECT_EQ(seen.best[t], first) << t;
  }
  EXPECT_TRUE(Observe(routing, /*best=*/false).best.empty());
}

}  // namespace
}  // namespace moesaic
