#include "trainer/recipe/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/job_spec.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

TEST(Recipe, ThePresetFillsWhatIsNotGiven) {
  JobSpec spec;
  spec.mutable_recipe()->mutable_router()->mutable_weight()->set_renormalize(false);
  spec.mutable_recipe()->mutable_router()->set_score(SIGMOID);
  ASSERT_TRUE(ApplyPreset(&spec).empty());
  EXPECT_EQ(spec.recipe().preset(), "top_k");
  const RouterSpec& router = spec.recipe().router();
  EXPECT_EQ(router.score(), SIGMOID);
  EXPECT_FALSE(router.weight().renormalize());
  EXPECT_EQ(router.weight().scale(), 1);
  EXPECT_EQ(router.balance().coefficient(), 0.01);
  EXPECT_FALSE(router.select().has_capacity_factor());
}

TEST(Recipe, AnUnknownPresetIsRefusedWithTheKnownOnes) {
  JobSpec spec;
  spec.mutable_recipe()->set_preset("magic");
  const std::vector<JobProblem> problems = ApplyPreset(&spec);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_EQ(problems[0].path, "recipe.preset");
  EXPECT_THAT(problems[0].message, HasSubstr("there is no preset \"magic\"; there are: top_k, "));
}

TEST(Recipe, ApplyingAPresetTwiceChangesNothing) {
  JobSpec once;
  ASSERT_TRUE(ApplyPreset(&once).empty());
  JobSpec twice = once;
  ASSERT_TRUE(ApplyPreset(&twice).empty());
  EXPECT_EQ(once.SerializeAsString(), twice.SerializeAsString());
}

// The general defaults are those of top_k, so a job that only had defaults applied is the same job.
TEST(Recipe, TopKIsTheDefault) {
  JobSpec preset_first, defaults_only;
  ASSERT_TRUE(ApplyPreset(&preset_first).empty());
  ApplyDefaults(&preset_first);
  ApplyDefaults(&defaults_only);
  EXPECT_EQ(preset_first.recipe().SerializeAsString(), defaults_only.recipe().SerializeAsString());
}

TEST(Recipe, AnUnknownPresetIsRefusedByName) {
  JobSpec spec;
  spec.mutable_recipe()->set_preset("top_q");
  const std::vector<JobProblem> problems = ApplyPreset(&spec);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_EQ(problems[0].path, "recipe.preset");
  EXPECT_THAT(problems[0].message, HasSubstr("top_q"));
  EXPECT_THAT(problems[0].message, HasSubstr("top_k"));
}

TEST(Recipe, AdaptivePresetsAreThoseOfTheirPapersAndValid) {
  for (const char* preset : {"adamoe", "top_p"}) {
    JobSpec spec;
    spec.mutable_recipe()->set_preset(preset);
    ASSERT_TRUE(ApplyPreset(&spec).empty());
    ApplyDefaults(&spec);
    const RecipeSpec& recipe = spec.recipe();
    const bool nulls = recipe.experts().null_experts() == 8;
    EXPECT_EQ(nulls, preset == std::string("adamoe"));
    EXPECT_EQ(recipe.router().weight().renormalize(), nulls);
    EXPECT_EQ(recipe.router().select().has_top_p(), !nulls);
  }
}

TEST(Recipe, TheStepAloneGivesTheRecipe) {
  JobSpec spec;
  spec.mutable_recipe()->mutable_router()->mutable_balance()->set_coefficient(0.5);
  ASSERT_TRUE(ApplyPreset(&spec).empty());
  ApplyDefaults(&spec);
  for (uint64_t step : {0, 1, 100000}) {
    EXPECT_EQ(RecipeAt(spec, step).phase, STEADY);
    EXPECT_EQ(RecipeAt(spec, step).router.balance().coefficient(), 0.5);
  }
}

}  // namespace
}  // namespace moesaic
