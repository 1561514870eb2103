// EvoMoE over layouts: one process's spawn, open gate and hard switch are those of any number of
// ranks, bit for bit in reproducible mode.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/base/scratch_folder.h"
#include "tests/equivalence/training_run.h"
#include "trainer/recipe/recipe.h"

namespace moesaic {
namespace {

constexpr int kExperts = 8;
constexpr uint64_t kSpawn = 2;
constexpr uint64_t kHard = 5;
constexpr int kSteps = 7;

class EvoMoeEquality : public ::testing::Test {
 protected:
  void SetUp() override {
    spec_ = Job([](RecipeSpec&) {});
  }

  JobSpec Job(void (*more)(RecipeSpec&)) const {
    JobSpec spec = TinyJob(folder_.path(), kExperts);
    spec.mutable_model()->mutable_moe()->set_active(1);
    spec = WithRecipe(spec, "evomoe", [more](RecipeSpec& recipe) {
      recipe.mutable_experts()->mutable_spawn()->set_step(kSpawn);
      GateOf(recipe).set_hard_step(kHard);
      GateOf(recipe).set_final_temperature(0.05);
      more(recipe);
    });
    spec.mutable_train()->set_reproducible(true);
    return spec;
  }

  static DenseToSparseSpec& GateOf(RecipeSpec& recipe) {
    return *recipe.mutable_router()->mutable_select()->mutable_dense_to_sparse();
  }

  const ScratchFolder folder_;
  JobSpec spec_;
};

TEST_F(EvoMoeEquality, EVO11_AnyLayoutHasTheBitsOfOneProcessAcrossAllPhases) {
  const JobSpec specs[] = {spec_, Job([](RecipeSpec& recipe) {
                             GateOf(recipe).set_weights(DenseToSparseSpec::NOISY);
                             recipe.mutable_router()->mutable_balance()->set_scope(SEQUENCE);
                             SpawnSpec& spawn = *recipe.mutable_experts()->mutable_spawn();
                             spawn.set_rescale(true);
                             spawn.set_moments(SpawnSpec::ZERO);
                           }),
                           Job([](RecipeSpec& recipe) {
                             recipe.mutable_router()->mutable_state()->set_width(8);
                             recipe.mutable_router()->mutable_select()->set_capacity_factor(1);
                           })};
  for (const JobSpec& spec : specs) {
    const RunResult one = TrainInProcess(spec, {}, kSteps);
    ASSERT_EQ(one.steps.size(), static_cast<size_t>(kSteps));
    for (const auto& [ranks, expert] : {std::pair(2, 2), {2, 1}, {4, 4}, {4, 2}, {3, 3}}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, expert " << expert);
      const RunResult other = TrainInProcess(spec, {.ranks = ranks, .expert = expert}, kSteps);
      ExpectSameBits(one, other);
      for (int step = 0; step < kSteps; ++step) {
        EXPECT_EQ(other.steps[step].recipe.flops, one.steps[step].recipe.flops);
      }
      EXPECT_EQ(other.steps[kSpawn - 1].recipe.expert_cosine,
                one.steps[kSpawn - 1].recipe.expert_cosine);
    }
  }
}

TEST_F(EvoMoeEquality, EVO3_TheSpawnIsTheSameForAnyExpertDegree) {
  const RunResult one = TrainInProcess(spec_, {}, kSpawn);
  for (const auto& [ranks, expert] : {std::pair(2, 2), {4, 4}, {4, 2}, {4, 1}, {3, 3}}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks, expert " << expert);
    ExpectSameBits(one, TrainInProcess(spec_, {.ranks = ranks, .expert = expert}, kSpawn));
  }
}

TEST_F(EvoMoeEquality, EVO10_AResumeInAnotherLayoutInAnyPhaseChangesNoBit) {
  const RunResult whole = TrainInProcess(spec_, {}, kSteps);
  for (int saved = 1; saved < kSteps; ++saved) {
    SCOPED_TRACE(testing::Message() << "after step " << saved);
    const RunResult first = TrainInProcess(spec_, {.ranks = 2, .expert = 2}, saved);
    const RunResult second =
        TrainInProcess(spec_, {.ranks = 4, .expert = 4}, kSteps - saved, &first);
    EXPECT_EQ(second.losses.back(), whole.losses.back());
    for (const auto& [name, value] : whole.weights) {
      EXPECT_TRUE(at::equal(second.weights.at(name), value)) << name;
    }
  }
}

// AdamW's first update is the learning rate against the gradient's sign, beside the decay.
void ExpectFirstUpdate(const RunResult& before, const RunResult& after, const std::string& name,
                       double decay) {
  const double lr = after.steps.back().metrics.lr();
  const at::Tensor moved = after.weights.at(name) - before.weights.at(name) * (1 - lr * decay);
  const at::Tensor gradient = after.gradients.at(name);
  const at::Tensor large = gradient.abs().gt(1e-5);
  ASSERT_TRUE(large.any().item<bool>()) << name;
  const at::Tensor steps =
      moved.masked_select(large) / (-lr * gradient.masked_select(large).sign());
  EXPECT_LT((steps - 1).abs().max().item<double>(), 0.02) << name;
}

TEST_F(EvoMoeEquality, WhatBeginsAtTheSpawnHasItsFirstUpdateThen) {
  const JobSpec zeros = Job([](RecipeSpec& recipe) {
    recipe.mutable_experts()->mutable_spawn()->set_moments(SpawnSpec::ZERO);
  });
  const double decay = zeros.train().optimizer().adamw().weight_decay();
  const RunResult before = TrainInProcess(zeros, {}, kSpawn);
  const RunResult after = TrainInProcess(zeros, {}, 1, &before);
  EXPECT_EQ(before.state.router_updates_from(), kSpawn);
  EXPECT_EQ(before.state.expert_updates_from(), kSpawn);
  ExpectFirstUpdate(before, after, "layers.1.moe.router", decay);
  ExpectFirstUpdate(before, after, "layers.1.moe.experts.0.down", decay);
  EXPECT_EQ(TrainInProcess(spec_, {}, kSpawn).state.expert_updates_from(), 0u);
}

// The cost falls as the gate becomes sparse, and the metrics say so.
TEST_F(EvoMoeEquality, MetricsShowThePhasesAndWhatTheyCost) {
  const RunResult run = TrainInProcess(spec_, {.ranks = 2, .expert = 2}, kSteps);
  const auto metrics = [&](uint64_t step) { return run.steps[step].metrics; };
  const auto recipe = [&](uint64_t step) { return run.steps[step].recipe; };
  const auto bytes = [&](uint64_t step) { return run.steps[step].routing.wire_bytes; };
  const auto active = [&](uint64_t step) {
    std::vector<double> layers;
    for (const auto& layer : run.steps[step].routing.layers) layers.push_back(layer.active);
    return layers;
  };
  for (uint64_t step = 0; step < kSpawn; ++step) {
    EXPECT_EQ(metrics(step).phase(), ONE_EXPERT);
    EXPECT_TRUE(active(step).empty());
    EXPECT_EQ(bytes(step), 0);
    EXPECT_FALSE(metrics(step).has_temperature());
    EXPECT_EQ(recipe(step).expert_cosine.size(), step + 1 == kSpawn ? 2u : 0u);
  }
  const RecipeMetrics spawned = recipe(kSpawn - 1);
  for (const double cosine : spawned.expert_cosine) EXPECT_NEAR(cosine, 0.7, 0.05);
  EXPECT_EQ(active(kSpawn), std::vector<double>(2, kExperts));
  for (uint64_t step = kSpawn; step < kHard; ++step) {
    EXPECT_EQ(metrics(step).phase(), DENSE_TO_SPARSE);
    EXPECT_EQ(metrics(step).temperature(), RecipeAt(spec_, step).temperature);
    if (step == kSpawn) continue;
    EXPECT_LT(active(step)[0], active(step - 1)[0]);
    EXPECT_LT(active(step)[1], active(step - 1)[1]);
    EXPECT_LT(recipe(step).flops, recipe(step - 1).flops);
    EXPECT_LT(bytes(step), bytes(step - 1));
  }
  for (uint64_t step = kHard; step < kSteps; ++step) {
    EXPECT_EQ(metrics(step).phase(), TOP_1);
    EXPECT_EQ(active(step), std::vector<double>(2, 1));
    EXPECT_LT(bytes(step), bytes(kHard - 1));
    EXPECT_LT(recipe(step).flops, recipe(kHard - 1).flops);
  }
  // All rows to all experts, half of which lie on the other rank: there and back, twice.
  constexpr int64_t kTokens = 20 * 12, kRow = 32 * 4, kLayers = 2;
  EXPECT_EQ(bytes(kSpawn), 4 * kLayers * kTokens * kExperts / 2 * kRow);
}

}  // namespace
}  // namespace moesaic
