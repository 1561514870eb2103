// RMoE (Qiu et al., arXiv 2408.06793): the router of each layer sees what those before it saw, through
// one recurrent cell. Softmax top-k with renormalised weights, balance loss 0.01, p = 128.
#pragma once

#include "proto/job.pb.h"

namespace moesaic {

RecipeSpec RMoeRecipe();

}  // namespace moesaic
