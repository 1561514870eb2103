// EvoMoE (Nie et al., arXiv 2112.14397): one expert a layer for a tenth of the steps, of which the
// experts are made by masking three in ten of its weights; then a gate that goes from all experts to
// few by its temperature, 2 to 0.3; from half of the steps on the best expert alone. Softmax, raw
// weights, balance loss 0.01. The numbers are ours where the paper's are not known to us.
#pragma once

#include "proto/job.pb.h"

namespace moesaic {

RecipeSpec EvoMoeRecipe();

}  // namespace moesaic
