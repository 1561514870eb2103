// ReXMoE (arXiv 2510.17483): experts shared by groups of layers, and which of them may be chosen
// when. Gradients are held against autograd in transformer_test.cc (cases ReXMoe*: REX-6), layouts
// against each other in tests/equivalence/recipe_equality_test.cc (REX-10).
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/trainer/model/model_fixture.h"
#include "trainer/model/feed_forward.h"
#include "trainer/model/router/candidates.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;

JobSpec Job(int layers, const std::string& recipe) {
  return SmallJob(absl::StrCat("model { layers: ", layers,
                               " moe { pattern { every: 1 first: 0 } } } train { steps: 1000 } "
                               "recipe { ",
                               recipe, " }"));
}

std::map<LeafSink::Leaf, at::Tensor> Leaves(const SingleRankModel& model,
                                            const std::vector<at::Tensor>& weights,
                                            const MicroBatch& batch, const PassOptions& options,
                                            std::vector<std::vector<int64_t>>* counts = nullptr) {
  FixedWeights source(model.catalog(), weights);
  LeafSink sink(model.catalog());
  TransformerPass pass(model.transformer(), batch, options, source);
  pass.RunForward();
  pass.RunBackward(sink);
  if (counts != nullptr) *counts = CountsOf(pass.scalars());
  return sink.leaves();
}

TEST(ReXMoe, REX1_WithoutReuseItIsTopKWithRawWeights) {
  const JobSpec ours = SmallJob("recipe { preset: 'rexmoe' experts { reuse: 1 } }");
  const JobSpec plain = SmallJob("recipe { router { weight { renormalize: false } } }");
  const SingleRankModel a(ours), b(plain);
  ASSERT_EQ(a.catalog().Hash(), b.catalog().Hash());
  const auto weights = RandomWeights(a.catalog(), 5);
  const MicroBatch batch = RandomMicroBatch(ours, 0, 2);
  const auto of_a = Leaves(a, weights, batch, {}), of_b = Leaves(b, weights, batch, {});
  ASSERT_EQ(of_a.size(), of_b.size());
  for (const auto& [leaf, value] : of_a) EXPECT_TRUE(at::equal(value, of_b.at(leaf)));
}

TEST(ReXMoe, REX2_UntilItsStartEachLayerIsThePlainOne) {
  const JobSpec shared =
      Job(2, "preset: 'rexmoe' experts { reuse: 2 } router { weight { renormalize: true } }");
  const JobSpec plain = Job(2, "");
  const SingleRankModel a(shared), b(plain);
  const auto of_a = RandomWeights(a.catalog(), 5);
  auto of_b = RandomWeights(b.catalog(), 5);
  for (ParameterId id = 0; id < b.catalog().size(); ++id) {
    const ParameterSpec& spec = b.catalog()[id];
    of_b[id] = of_a[a.catalog().Find(spec.name)];
    if (spec.kind == ParameterKind::kRouter) {
      of_b[id] = of_b[id].narrow(0, 5 * spec.layer, 5).contiguous();
    }
  }
  const MicroBatch batch = RandomMicroBatch(shared, 0, 2);
  const auto outputs = [&](const SingleRankModel& model, const std::vector<at::Tensor>& weights) {
    FixedWeights source(model.catalog(), weights);
    PassOptions options;
    options.step = 200;  // a fifth of the steps
    TransformerPass pass(model.transformer(), batch, options, source);
    pass.RunForward();
    std::vector<at::Tensor> selected;
    for (int layer = 0; layer < 2; ++layer) {
      const Routing& routing = MoeBlock::RoutingOf(pass.contexts()[2 + 2 * layer]);
      selected.push_back(routing.selected);
    }
    return std::pair(selected, pass.scalars().loss_sum);
  };
  const auto [selected, loss] = outputs(a, of_a);
  const auto [plain_selected, plain_loss] = outputs(b, of_b);
  for (int layer = 0; layer < 2; ++layer) {
    EXPECT_TRUE(at::equal(selected[layer] - 5 * layer, plain_selected[layer]));
  }
  EXPECT_NEAR(loss, plain_loss, 1e-5 * plain_loss);
}

CandidatesSpec Candidates(uint64_t start, uint64_t end, CandidateSchedule schedule,
                          CandidateMode mode = LOCAL_FIRST) {
  CandidatesSpec rule;
  rule.set_mode(mode);
  rule.set_schedule(schedule);
  rule.set_start_step(start);
  rule.set_end_step(end);
  rule.set_from(64);
  return rule;
}

// The published run: 64 own experts of 256, between steps 10k and 30k.
TEST(ReXMoe, REX3_TheNumberOfCandidatesGrowsFromOwnToAll) {
  const CandidatesSpec linear = Candidates(10000, 30000, LINEAR);
  const CandidatesSpec stepwise = Candidates(10000, 30000, STEPWISE);
  const auto count = [](const CandidatesSpec& rule, uint64_t step) {
    return CandidateCount({.rule = &rule, .step = step, .own = 64, .experts = 256});
  };
  EXPECT_EQ(count(linear, 0), 64);
  EXPECT_EQ(count(linear, 10000), 64);
  EXPECT_EQ(count(linear, 10001), 64);  // rounded down
  EXPECT_EQ(count(linear, 20000), 160);
  EXPECT_EQ(count(linear, 30000), 256);
  EXPECT_EQ(count(linear, 50000), 256);
  EXPECT_EQ(count(stepwise, 9999), 64);
  EXPECT_EQ(count(stepwise, 10000), 128);
  EXPECT_EQ(count(stepwise, 19999), 128);
  EXPECT_EQ(count(stepwise, 20000), 192);
  EXPECT_EQ(count(stepwise, 30000), 256);
  for (const CandidatesSpec& rule : {linear, stepwise}) {
    int64_t before = 64;
    for (uint64_t step = 0; step < 32000; step += 97) {
      const int64_t now = count(rule, step);
      EXPECT_GE(now, before);
      before = now;
    }
    EXPECT_EQ(before, 256);
  }
  const CandidatesSpec exact = Candidates(0, 100, LINEAR);
  EXPECT_EQ(CandidateCount({.rule = &exact, .step = 29, .own = 64, .experts = 164}), 64 + 29);
  const CandidatesSpec at_once = Candidates(500, 500, LINEAR);
  EXPECT_EQ(count(at_once, 500), 64);
  EXPECT_EQ(count(at_once, 501), 256);
}

TEST(ReXMoe, REX4_ExactlyTheOthersAreMasked) {
  for (const CandidateMode mode : {LOCAL_FIRST, RANDOM_ALL}) {
    const CandidatesSpec rule = Candidates(10000, 30000, LINEAR, mode);
    CandidateInputs inputs = {.rule = &rule,
                              .seed = 3,
                              .step = 20000,
                              .layer = 5,
                              .own_begin = 64,
                              .own = 64,
                              .experts = 256};
    const at::Tensor mask = CandidateMask(inputs);
    EXPECT_EQ(mask.sum().item<int64_t>(), 160);
    EXPECT_TRUE(at::equal(CandidateMask(inputs), mask));
    EXPECT_EQ(mask.narrow(0, 64, 64).all().item<bool>(), mode == LOCAL_FIRST);
    inputs.step = 20001;
    EXPECT_FALSE(at::equal(CandidateMask(inputs), mask));
    inputs.step = 20000;
    inputs.layer = 6;
    EXPECT_FALSE(at::equal(CandidateMask(inputs), mask));
    inputs.step = 30000;
    EXPECT_FALSE(CandidateMask(inputs).defined());
  }
}

TEST(ReXMoe, REX4_WhatIsMaskedGetsNoTokenAndNoGradient) {
  const JobSpec spec = Job(2,
                           "preset: 'rexmoe' experts { reuse: 2 } "
                           "router { select { candidates { mode: RANDOM_ALL } } }");
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  std::vector<std::vector<int64_t>> counts;
  PassOptions options;
  options.step = 350;
  const auto leaves = Leaves(model, weights, RandomMicroBatch(spec, 0, 2), options, &counts);
  for (int layer = 0; layer < 2; ++layer) {
    const at::Tensor mask = CandidateMask({.rule = &spec.recipe().router().select().candidates(),
                                           .seed = spec.train().seed(),
                                           .step = 350,
                                           .layer = layer,
                                           .own_begin = 5 * layer,
                                           .own = 5,
                                           .experts = 10});
    ASSERT_TRUE(mask.defined());
    for (int id = 0; id < 10; ++id) {
      if (mask[id].item<bool>()) continue;
      EXPECT_EQ(counts[layer][id], 0);
      const ParameterId down =
          model.catalog().Find(absl::StrCat("layers.", id / 5, ".moe.experts.", id % 5, ".down"));
      EXPECT_EQ(leaves.at({down, layer, 0}).abs().max().item<float>(), 0);
    }
  }
}

TEST(ReXMoe, REX5_OnlyRouterRowsAreAdded) {
  const ParameterCatalog plain = CatalogOf(Job(4, ""));
  for (const int reuse : {2, 4}) {
    const ParameterCatalog shared =
        CatalogOf(Job(4, absl::StrCat("preset: 'rexmoe' experts { reuse: ", reuse, " }")));
    EXPECT_EQ(shared.size(), plain.size());
    EXPECT_EQ(shared.total_elements() - plain.total_elements(), 4 * (reuse - 1) * 5 * 16);
  }
}

TEST(ReXMoe, REX6_EachUseOfAnExpertReportsALeaf) {
  const JobSpec spec = Job(2, "preset: 'rexmoe' experts { reuse: 2 }");
  const SingleRankModel model(spec);
  PassOptions options;
  options.step = 999;
  const auto leaves =
      Leaves(model, RandomWeights(model.catalog(), 5), RandomMicroBatch(spec, 0, 2), options);
  for (const ParameterSpec& parameter : model.catalog().parameters()) {
    if (parameter.kind != ParameterKind::kExpert) continue;
    EXPECT_EQ(parameter.uses, 2);
    for (const int use : {0, 1}) {
      EXPECT_TRUE(leaves.contains({model.catalog().Find(parameter.name), use, 0}));
    }
  }
}

TEST(ReXMoe, REX7_EveryTokenChoosesKOfThePool) {
  const JobSpec spec = Job(4, "preset: 'rexmoe' experts { reuse: 4 }");
  const SingleRankModel model(spec);
  for (const uint64_t step : {0, 400, 999}) {
    std::vector<std::vector<int64_t>> counts;
    PassOptions options;
    options.step = step;
    Leaves(model, RandomWeights(model.catalog(), 5), RandomMicroBatch(spec, 0, 2), options,
           &counts);
    ASSERT_EQ(counts.size(), 4u);
    for (const auto& layer : counts) {
      EXPECT_EQ(layer.size(), 20u);
      EXPECT_EQ(std::accumulate(layer.begin(), layer.end(), int64_t{0}), 2 * 24);
    }
  }
}

TEST(ReXMoe, REX8_TheLastGroupMayBeSmaller) {
  const ParameterCatalog catalog = CatalogOf(Job(5, "preset: 'rexmoe' experts { reuse: 2 }"));
  EXPECT_THAT(catalog.PoolLayers(1), ElementsAre(0, 1));
  EXPECT_THAT(catalog.PoolLayers(2), ElementsAre(2, 3));
  EXPECT_THAT(catalog.PoolLayers(4), ElementsAre(4));
  EXPECT_THAT(catalog[catalog.Find("layers.3.moe.router")].shape, ElementsAre(10, 16));
  EXPECT_THAT(catalog[catalog.Find("layers.4.moe.router")].shape, ElementsAre(5, 16));
  EXPECT_EQ(catalog[catalog.Find("layers.4.moe.experts.0.down")].uses, 1);
}

// Dense layers between do not count.
TEST(ReXMoe, REX8_GroupsAreOfLayersWithExperts) {
  const ParameterCatalog catalog =
      CatalogOf(SmallJob("model { layers: 6 } recipe { preset: 'rexmoe' experts { reuse: 2 } }"));
  EXPECT_THAT(catalog.PoolLayers(1), ElementsAre(1, 3));
  EXPECT_THAT(catalog.PoolLayers(3), ElementsAre(1, 3));
  EXPECT_THAT(catalog.PoolLayers(5), ElementsAre(5));
  EXPECT_THAT(catalog.PoolLayers(2), ElementsAre());
}

TEST(ReXMoe, REX9_EvaluationChoosesFromTheWholePool) {
  const JobSpec spec = Job(2, "preset: 'rexmoe' experts { reuse: 2 }");
  const Router router({.rule = spec.recipe().router(), .experts = 10, .active = 2, .own = 5});
  const at::Tensor logits =
      at::randn({64, 10}, at::make_generator<at::CPUGeneratorImpl>(1), at::kFloat);
  const Routing first = router.Route({.logits = logits, .step = 0, .training = false});
  const Routing later = router.Route({.logits = logits, .step = 999, .training = false});
  EXPECT_TRUE(at::equal(first.selected, later.selected));
  EXPECT_TRUE(first.selected.ge(5).any().item<bool>());
  const Routing training = router.Route({.logits = logits, .step = 0});
  EXPECT_FALSE(training.selected.ge(5).any().item<bool>());
}

}  // namespace
}  // namespace moesaic
