// RecipeMetrics: what is said of where a recipe stands in a step, and of what the step cost.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace moesaic {

struct RecipeMetrics {
  double flops = 0;        // of the step's matrix products and attention scores
  std::string phase = {};  // trainer/recipe/schedule.h; empty: the recipe has none
  std::optional<double> temperature = {};  // of a dense-to-sparse gate
  // By layer with experts, of a step that ended with experts made of one: their mean cosine.
  std::vector<double> expert_cosine = {};
};

}  // namespace moesaic
