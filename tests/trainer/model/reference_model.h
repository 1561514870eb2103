// The same model written a second time, with ATen operators in double and LibTorch's autograd,
// every expert run on every token: slow, plain, and sharing no code with trainer/model.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "trainer/catalog/parameter_catalog.h"
#include "trainer/model/block.h"

namespace moesaic {

struct ReferenceResult {
  double loss_sum = 0;
  double aux_loss = 0;
  int64_t dropped = 0;
  at::Tensor logits;                         // [tokens, vocabulary]
  std::vector<at::Tensor> gradients;         // by parameter id, of loss and aux with their scales
  std::vector<std::vector<int64_t>> counts;  // by MoE layer
};

ReferenceResult RunReference(const JobSpec& spec, const ParameterCatalog& catalog,
                             const std::vector<at::Tensor>& weights, const MicroBatch& batch,
                             const PassOptions& options);

}  // namespace moesaic
