// Recipes whose tokens take as many experts as they need.
#pragma once

#include "proto/job.pb.h"

namespace moesaic {

// AdaMoE (Zeng et al., arXiv 2406.13233): eight null experts, which compute nothing, beside the real
// ones; weights are normalised over the real ones that were chosen.
RecipeSpec AdaMoeRecipe();

// Dynamic routing (Huang et al., arXiv 2403.07652): a token takes its best experts until their
// probabilities sum up to 0.4, weighted by these as they are; a loss on their entropy.
RecipeSpec TopPRecipe();

}  // namespace moesaic
