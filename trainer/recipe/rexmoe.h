// ReXMoE (arXiv 2510.17483): four layers in a row choose from each other's experts; a layer starts with
// its own, and the others join between a fifth and three fifths of the training. Softmax, raw
// weights, balance loss 0.01 over the experts that can be chosen.
#pragma once

#include "proto/job.pb.h"

namespace moesaic {

RecipeSpec ReXMoeRecipe();

}  // namespace moesaic
