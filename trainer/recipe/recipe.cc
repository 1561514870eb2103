#include "trainer/recipe/recipe.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "trainer/recipe/top_k.h"

namespace moesaic {
namespace {

struct Preset {
  const char* name;
  RouterSpec (*router)();
};

constexpr Preset kPresets[] = {
    {"top_k", TopKRouter},
};

const Preset* FindPreset(const std::string& name) {
  for (const Preset& preset : kPresets) {
    if (name == preset.name) return &preset;
  }
  return nullptr;
}

}  // namespace

std::vector<std::string> RecipePresets() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  return names;
}

absl::Status ApplyPreset(JobSpec* spec) {
  RecipeSpec* recipe = spec->mutable_recipe();
  if (!recipe->has_preset()) recipe->set_preset(kPresets[0].name);
  const Preset* preset = FindPreset(recipe->preset());
  if (preset == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("recipe.preset: there is no preset \"", recipe->preset(),
                     "\"; there are: ", absl::StrJoin(RecipePresets(), ", ")));
  }
  // Merging what was given over the preset lets every given field win, at any depth.
  RouterSpec router = preset->router();
  router.MergeFrom(recipe->router());
  *recipe->mutable_router() = std::move(router);
  return absl::OkStatus();
}

RecipePoint RecipeAt(const JobSpec& spec, uint64_t /*step*/) {
  // Every preset of the table has one phase and constant parts.
  return {0, spec.recipe().router()};
}

}  // namespace moesaic
