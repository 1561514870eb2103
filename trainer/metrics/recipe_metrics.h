// RecipeMetrics: what a step of a recipe cost, and what it made of the experts. Its phase is in
// StepMetrics.
#pragma once

#include <vector>

namespace moesaic {

struct RecipeMetrics {
  double flops = 0;  // of the step's matrix products and attention scores
  // By layer with experts, of a step that ended with experts made of one: their mean cosine.
  std::vector<double> expert_cosine = {};
};

}  // namespace moesaic
