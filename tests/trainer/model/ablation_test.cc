// What a validation pass leaves out of a trained model (trainer/model/ablation.h).
#include "trainer/model/ablation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/trainer/model/model_fixture.h"
#include "trainer/model/feed_forward.h"
#include "trainer/model/linear.h"
#include "trainer/model/router/router.h"

namespace moesaic {
namespace {

constexpr int kMoeLayer = 1;  // of SmallJob

at::Tensor Input() {
  return at::randn({12, 16}, at::make_generator<at::CPUGeneratorImpl>(1), at::kFloat);
}

// What layer kMoeLayer adds to its input, and the choices it made.
struct LayerOutput {
  at::Tensor hidden;
  LayerRouting routing;
};

LayerOutput OutputOf(const JobSpec& spec, const Ablation& ablation) {
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  FixedWeights source(model.catalog(), weights);
  const MicroBatch batch = RandomMicroBatch(spec, 0, 1);
  const PassOptions options = {.training = false, .ablation = ablation};
  PassScalars scalars;
  PassContext context = {&batch, &options, &source, &scalars, nullptr};
  const at::Tensor x = Input();
  Bundle out = model.transformer().feed_forward(kMoeLayer).Forward({x, {}}, context);
  return {out.hidden.sub(x), scalars.routing.front()};
}

RouteInputs Validating(const at::Tensor& logits, int64_t skip_best, int64_t most) {
  return {.logits = logits, .training = false, .skip_best = skip_best, .most = most};
}

TEST(Ablation, TheBestExpertsGiveWayToTheNext) {
  const JobSpec spec = SmallJob();
  const Router router({.rule = spec.recipe().router(), .experts = 5, .active = 2});
  const at::Tensor logits = at::tensor({3.0f, 1.0f, 5.0f, 4.0f, 2.0f}).reshape({1, 5});
  const auto chosen = [&](int64_t skip_best, int64_t most) {
    return router.Route(Validating(logits, skip_best, most)).expert;
  };
  const auto ids = [](std::vector<int64_t> list) {
    const auto count = static_cast<int64_t>(list.size());
    return at::tensor(list, at::kLong).reshape({1, count});
  };
  EXPECT_TRUE(at::equal(chosen(0, 0), ids({2, 3})));
  EXPECT_TRUE(at::equal(chosen(1, 0), ids({3, 0})));
  EXPECT_TRUE(at::equal(chosen(3, 0), ids({4, 1})));
  EXPECT_TRUE(at::equal(chosen(0, 1), ids({2})));
  EXPECT_TRUE(at::equal(chosen(2, 3), ids({0, 4, 1})));
}

TEST(Ablation, WeightsOfWhatIsLeftSumToOne) {
  const JobSpec spec = SmallJob("recipe { router { weight { renormalize: true } } }");
  const Router router({.rule = spec.recipe().router(), .experts = 5, .active = 2});
  const at::Tensor logits = at::tensor({3.0f, 1.0f, 5.0f, 4.0f, 2.0f}).reshape({1, 5});
  const Routing routing = router.Route(Validating(logits, 2, 0));
  EXPECT_NEAR(routing.weight.sum().item<double>(), 1, 1e-6);
}

TEST(Ablation, WithoutTheSharedExpertItsOutputIsMissing) {
  const JobSpec spec = SmallJob("model { moe { shared_width: 12 } }");
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  FixedWeights source(model.catalog(), weights);
  const auto id = [&](const char* matrix) {
    return model.catalog().Find(absl::StrCat("layers.", kMoeLayer, ".moe.shared.", matrix));
  };
  const SwiGluLayer shared(id("gate_up"), id("down"));
  SwiGluLayer::Saved saved;
  const at::Tensor gain =
      weights[model.catalog().Find(absl::StrCat("layers.", kMoeLayer, ".feed_forward_norm"))];
  const at::Tensor x = Input();
  const double epsilon = spec.model().norm_epsilon();
  const at::Tensor normed = x * at::rsqrt(x.square().mean(1, true) + epsilon) * gain;
  const at::Tensor missing = OutputOf(spec, {}).hidden - OutputOf(spec, {.shared = false}).hidden;
  EXPECT_LT(RelativeError(missing, shared.Forward(normed, source, saved)), 1e-5);
}

TEST(Ablation, FewerActiveExpertsAreCounted) {
  const JobSpec spec = SmallJob();
  const auto pairs = [&](const Ablation& ablation) {
    int64_t sum = 0;
    for (const int64_t count : OutputOf(spec, ablation).routing.counts) sum += count;
    return sum;
  };
  EXPECT_EQ(pairs({}), 12 * spec.model().moe().active());
  EXPECT_EQ(pairs({.active = 1}), 12);
  EXPECT_EQ(pairs({.active = 5}), 60);
}

TEST(Ablation, WhatDoesNotFitIsRefused) {
  const JobSpec spec = SmallJob();
  EXPECT_TRUE(CheckAblation(spec, {}).ok());
  EXPECT_TRUE(CheckAblation(spec, {.skip_best = 3, .active = 2}).ok());
  const auto refusal = [](const JobSpec& of, const Ablation& ablation) {
    return std::string(CheckAblation(of, ablation).message());
  };
  EXPECT_EQ(refusal(spec, {.skip_best = 4, .active = 2}),
            "[eval] 2 experts a token without the best 4 want more than the 5 that it may choose from");
  EXPECT_EQ(refusal(spec, {.shared = false}), "[eval] the model has no shared expert to leave out");
  const JobSpec null = SmallJob("recipe { experts { null_experts: 2 } }");
  EXPECT_TRUE(CheckAblation(null, {.skip_best = 5, .active = 2}).ok());
  JobSpec dense = spec;
  dense.mutable_model()->clear_moe();
  EXPECT_EQ(refusal(dense, {.active = 1}), "[eval] the model has no experts to leave out");
  const JobSpec grouped = SmallJob(
      "model { moe { experts: 6 active: 2 } } recipe { router { select { groups: 3 group_limit: 1 } } }");
  EXPECT_TRUE(CheckAblation(grouped, {.active = 1}).ok());
  EXPECT_FALSE(CheckAblation(grouped, {.skip_best = 1}).ok());
}

}  // namespace
}  // namespace moesaic
