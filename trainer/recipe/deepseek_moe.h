// DeepSeekMoE and its refinements.
#pragma once

#include "proto/job.pb.h"

namespace moesaic {

// DeepSeekMoE (Dai et al., arXiv 2401.06066): fine-grained experts (each cut into four), one shared
// expert, raw softmax weights, expert-level balance loss.
RecipeSpec DeepSeekMoeRecipe();

// The gate of DeepSeek-V2 (arXiv 2405.04434): raw softmax weights, balance losses of each sequence.
// Groups of experts, where experts are spread over devices, are the job's to say
// (recipe.router.select.groups), and so is the scale of the weights (16 in the 236B model).
RecipeSpec DeepSeekV2Recipe();

// The gate of DeepSeek-V3 (arXiv 2412.19437): normalised sigmoid weights with a scale of 2.5,
// loss-free balancing by a bias (Wang et al., arXiv 2408.15664), a weak loss of each sequence.
RecipeSpec DeepSeekV3Recipe();

}  // namespace moesaic
