// top_k: each token goes to the K experts of the largest softmax probability, weighted by those
// probabilities, renormalised; the balance loss of Switch (Fedus et al., 2022) and GShard (Lepikhin
// et al., 2021). What Mixtral does.
#pragma once

#include "proto/job.pb.h"

namespace moesaic {

RecipeSpec TopKRecipe();

}  // namespace moesaic
