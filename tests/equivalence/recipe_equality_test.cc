// Recipes over layouts: what one process computes, every number of ranks does, bit for bit in
// reproducible mode.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/base/scratch_folder.h"
#include "tests/equivalence/training_run.h"

namespace moesaic {
namespace {

constexpr int kSteps = 4;

struct Case {
  const char* name;
  const char* preset;
  void (*more)(RecipeSpec& recipe);
  bool qk_norm = false;
};

void Groups(RecipeSpec& recipe) {
  SelectSpec& select = *recipe.mutable_router()->mutable_select();
  select.set_groups(4);
  select.set_group_limit(2);
}

void Coefficients(BalanceSpec& balance, double first, double later) {
  balance.set_coefficient(first);
  balance.mutable_later()->set_step(2);
  balance.mutable_later()->set_coefficient(later);
}

const Case kCases[] = {
    {"DeepSeekMoe", "deepseek_moe",
     [](RecipeSpec& recipe) { recipe.mutable_experts()->set_segments(2); }},
    {"DeepSeekV2", "deepseek_v2",
     [](RecipeSpec& recipe) {
       Groups(recipe);
       BalanceSpec& balance = *recipe.mutable_router()->mutable_balance();
       balance.set_group_coefficient(0.05);
       balance.set_communication(0.02);
       SelectSpec& select = *recipe.mutable_router()->mutable_select();
       select.set_capacity_factor(1);
       select.set_capacity_of(GROUP);
       select.set_drop(LOWEST);
       select.set_never_dropped(0.1);
     }},
    {"DeepSeekV3", "deepseek_v3", Groups},
    {"ProportionalBias", "deepseek_v3",
     [](RecipeSpec& recipe) {
       recipe.mutable_router()->mutable_balance()->mutable_bias()->set_rule(PROPORTIONAL);
     }},
    {"HeadNorms", "top_k", [](RecipeSpec&) {}, true},
    {"RMoe", "rmoe",
     [](RecipeSpec& recipe) { recipe.mutable_router()->mutable_state()->set_width(8); }},
    {"RMoeWithDeepSeekV3", "deepseek_v3",
     [](RecipeSpec& recipe) { recipe.mutable_router()->mutable_state()->set_width(8); }},
    {"ReXMoe", "rexmoe", [](RecipeSpec& recipe) { recipe.mutable_experts()->set_reuse(2); }},
    {"ReXMoeWithPoolBalance", "rexmoe",
     [](RecipeSpec& recipe) {
       recipe.mutable_experts()->set_reuse(2);
       recipe.mutable_router()->mutable_balance()->set_pool_coefficient(0.1);
     }},
    {"ReXMoeWithABias", "deepseek_v3",
     [](RecipeSpec& recipe) {
       recipe.mutable_experts()->set_reuse(2);
       recipe.mutable_router()->mutable_select()->mutable_candidates()->set_mode(RANDOM_ALL);
     }},
    {"AdaMoe", "adamoe", [](RecipeSpec& recipe) { recipe.mutable_experts()->set_null_experts(6); }},
    {"AdaMoeWithReuseAndAState", "adamoe",
     [](RecipeSpec& recipe) {
       recipe.mutable_experts()->set_null_experts(4);
       recipe.mutable_experts()->set_reuse(2);
       recipe.mutable_router()->mutable_state()->set_width(8);
     }},
    {"TopP", "top_p",
     [](RecipeSpec& recipe) { recipe.mutable_router()->mutable_select()->set_top_p(0.3); }},
    {"GlobalBalance", "top_k",
     [](RecipeSpec& recipe) { recipe.mutable_router()->mutable_balance()->set_scope(GLOBAL); }},
    // From the step on that a resume begins with.
    {"GlobalBalanceLater", "top_k",
     [](RecipeSpec& recipe) {
       BalanceSpec& balance = *recipe.mutable_router()->mutable_balance();
       balance.set_scope(GLOBAL);
       Coefficients(balance, 0, 0.5);
     }},
    {"AdaMoeLater", "adamoe",
     [](RecipeSpec& recipe) {
       recipe.mutable_experts()->set_null_experts(6);
       Coefficients(*recipe.mutable_router()->mutable_balance(), 0.5, 1e-4);
     }},
};

class RecipeEquality : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    spec_ = TinyJob(folder_.path(), 8);
    spec_.mutable_model()->set_qk_norm(GetParam().qk_norm);
    if (GetParam().preset == std::string("deepseek_moe")) {
      spec_.mutable_model()->mutable_moe()->clear_shared_width();
    }
    spec_ = WithRecipe(spec_, GetParam().preset, GetParam().more);
    spec_.mutable_train()->set_reproducible(true);
  }

  const ScratchFolder folder_;
  JobSpec spec_;
};

// Counts and biases of DeepSeekMoE (DSM-10), shared experts of ReXMoE (REX-10), null experts
// (ADA-7) and top-p (TOPP-7) among them.
TEST_P(RecipeEquality, DSM10_REX10_AnyLayoutIsBitEqualToOneProcess) {
  const RunResult one = TrainInProcess(spec_, {}, kSteps);
  for (const auto& [ranks, expert] : {std::pair(2, 2), {2, 1}, {4, 4}, {4, 2}, {3, 3}}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks, expert " << expert);
    ExpectSameBits(one, TrainInProcess(spec_, {.ranks = ranks, .expert = expert}, kSteps));
  }
}

TEST_P(RecipeEquality, AResumeInAnotherLayoutChangesNoBit) {
  const RunResult whole = TrainInProcess(spec_, {}, kSteps);
  const RunResult first = TrainInProcess(spec_, {.ranks = 2, .expert = 2}, 2);
  const RunResult second = TrainInProcess(spec_, {.ranks = 4, .expert = 4}, kSteps - 2, &first);
  EXPECT_EQ(second.losses.back(), whole.losses.back());
  for (const auto& [name, value] : whole.weights) {
    EXPECT_TRUE(at::equal(second.weights.at(name), value)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Recipes, RecipeEquality, ::testing::ValuesIn(kCases),
                         [](const auto& c) { return c.param.name; });

// The metrics say how many experts of its pool a layer may choose: its own at first, all in
// validation.
TEST(RecipeStates, MetricsCountTheCandidates) {
  const ScratchFolder folder;
  const JobSpec spec = WithRecipe(TinyJob(folder.path(), 8), "rexmoe", [](RecipeSpec& recipe) {
    recipe.mutable_experts()->set_reuse(2);
  });
  const RunResult run = TrainInProcess(spec, {.ranks = 2, .expert = 2}, 1);
  ASSERT_EQ(run.routing.size(), 1u);
  EXPECT_NE(run.routing[0].find(R"("candidates":[8,8])"), std::string::npos) << run.routing[0];
  EXPECT_NE(run.validation_routing.find(R"("candidates":[16,16])"), std::string::npos)
      << run.validation_routing;
}

// Evaluation is no step: it moves no bias.
TEST(RecipeStates, DSM10_TheBiasMovesByWholeSpeedsOfTheStep) {
  const ScratchFolder folder;
  JobSpec spec = WithRecipe(TinyJob(folder.path(), 8), "deepseek_v3", [](RecipeSpec& recipe) {
    recipe.mutable_router()->mutable_balance()->mutable_bias()->set_speed(0.5);
  });
  const RunResult run = TrainInProcess(spec, {.ranks = 2, .expert = 2}, 1);
  const at::Tensor bias = run.weights.at("layers.1.moe.router_bias");
  EXPECT_TRUE(at::logical_or(bias.abs().eq(0.5), bias.eq(0)).all().item<bool>()) << bias;
  EXPECT_TRUE(bias.abs().max().item<float>() > 0);
  EXPECT_FALSE(run.first_moments.contains("layers.1.moe.router_bias"));
  spec.mutable_train()->set_micro_batch(5);
  const RunResult other_split = TrainInProcess(spec, {}, 1);
  EXPECT_TRUE(at::equal(other_split.weights.at("layers.1.moe.router_bias"), bias));
}

}  // namespace
}  // namespace moesaic
