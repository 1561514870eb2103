// weight: the scores of the chosen experts -> what each expert's output counts for.
#pragma once

#include <ATen/core/Tensor.h>

#include "proto/job.pb.h"

namespace moesaic {

// w = scale * s_selected, divided by (their sum + 1e-20) where the rule renormalises.
// scores fp32 [n, E], selected int64 [n, K] -> fp32 [n, K], 0 where there is no expert (-1).
at::Tensor SelectedWeights(const WeightSpec& rule, const at::Tensor& scores,
                           const at::Tensor& selected);

// dscores fp32 [n, E] += the gradient of the above.
void SelectedWeightsBackward(const WeightSpec& rule, const at::Tensor& scores,
                             const at::Tensor& selected, const at::Tensor& dweights,
                             at::Tensor& dscores);

}  // namespace moesaic
