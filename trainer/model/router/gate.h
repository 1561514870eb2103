// gate: the probabilities of EvoMoE's dense-to-sparse gate (arXiv 2112.14397):
//   g = softmax((z + zeta) / temperature),   zeta ~ Gumbel(0, 1) = -log(-log(u))
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moesaic {

struct GateInputs {
  double temperature = 1;
  bool noise = true;  // else zeta is 0
  // What zeta depends on, with the expert and the token's place in the training data: on nothing of
  // the layout.
  uint64_t seed = 0;
  uint64_t step = 0;
  int layer = 0;
  int64_t first_token = 0;  // the place of the first row
};

// logits fp32 [n, E] -> fp32 [n, E].
at::Tensor GateProbabilities(const at::Tensor& logits, const GateInputs& inputs);

}  // namespace moesaic
