#include "trainer/recipe/recipe.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "trainer/recipe/adaptive.h"
#include "trainer/recipe/deepseek_moe.h"
#include "trainer/recipe/evomoe.h"
#include "trainer/recipe/rexmoe.h"
#include "trainer/recipe/rmoe.h"
#include "trainer/recipe/top_k.h"

namespace moesaic {
namespace {

struct Preset {
  const char* name;
  RecipeSpec (*recipe)();
};

constexpr Preset kPresets[] = {
    {"top_k", TopKRecipe},
    {"deepseek_moe", DeepSeekMoeRecipe},
    {"deepseek_v2", DeepSeekV2Recipe},
    {"deepseek_v3", DeepSeekV3Recipe},
    {"evomoe", EvoMoeRecipe},
    {"rexmoe", ReXMoeRecipe},
    {"rmoe", RMoeRecipe},
    {"adamoe", AdaMoeRecipe},
    {"top_p", TopPRecipe},
};

const Preset* FindPreset(const std::string& name) {
  for (const Preset& preset : kPresets) {
    if (name == preset.name) return &preset;
  }
  return nullptr;
}

// What keeps `experts` from being applied to `moe`; empty: nothing.
std::vector<JobProblem> ProblemsOf(const ExpertsSpec& experts, const MoeSpec& moe) {
  if (moe.expert_width() % experts.segments() != 0) {
    return {{"recipe.experts.segments",
             absl::StrCat("must divide model.moe.expert_width (", moe.expert_width(), "), not ",
                          experts.segments())}};
  }
  const uint64_t active = uint64_t{experts.segments()} * moe.active();
  if (experts.shared() >= active) {
    return {{"recipe.experts.shared",
             absl::StrCat("must be below segments * model.moe.active (", active, "), not ",
                          experts.shared(), ": no routed expert would be active")}};
  }
  if (experts.shared() > 0 && moe.shared_width() > 0) {
    return {{"recipe.experts.shared",
             "says how wide the shared expert is, and so does model.moe.shared_width: give one"}};
  }
  return {};
}

std::vector<JobProblem> ApplyExperts(JobSpec* spec) {
  ExpertsSpec& experts = *spec->mutable_recipe()->mutable_experts();
  if (!experts.has_segments()) experts.set_segments(1);
  if (!spec->model().has_moe() || experts.segments() == 0) return {};
  MoeSpec& moe = *spec->mutable_model()->mutable_moe();
  const bool whole = moe.has_experts() && moe.has_active() && moe.has_expert_width();
  if (!whole || (experts.segments() == 1 && experts.shared() == 0)) return {};
  std::vector<JobProblem> problems = ProblemsOf(experts, moe);
  if (!problems.empty()) return problems;
  moe.set_expert_width(moe.expert_width() / experts.segments());
  moe.set_experts(experts.segments() * moe.experts() - experts.shared());
  moe.set_active(experts.segments() * moe.active() - experts.shared());
  if (experts.shared() > 0) moe.set_shared_width(experts.shared() * moe.expert_width());
  experts.set_segments(1);
  experts.set_shared(0);
  return {};
}

}  // namespace

std::vector<std::string> RecipePresets() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  return names;
}

std::vector<JobProblem> ApplyPreset(JobSpec* spec) {
  RecipeSpec* recipe = spec->mutable_recipe();
  if (!recipe->has_preset()) recipe->set_preset(kPresets[0].name);
  const Preset* preset = FindPreset(recipe->preset());
  if (preset == nullptr) {
    return {{"recipe.preset", absl::StrCat("there is no preset \"", recipe->preset(),
                                           "\"; there are: ", absl::StrJoin(RecipePresets(), ", "))}};
  }
  // Merging what was given over the preset lets every given field win, at any depth.
  RecipeSpec filled = preset->recipe();
  filled.MergeFrom(*recipe);
  *recipe = std::move(filled);
  return ApplyExperts(spec);
}

RecipePoint RecipeAt(const JobSpec& spec, uint64_t step) {
  const RecipeSchedule schedule(spec.recipe());
  return {schedule.PhaseAt(step), schedule.TemperatureAt(step), spec.recipe().router(), schedule};
}

}  // namespace moesaic
