// Compute weights of parameters with several holders: the primary has stepped, the others receive.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <span>

#include "parallel/comm/communicator.h"
#include "parallel/data/gradients.h"

namespace moesaic {

// Collective over `data`; one exchange for all parameters. `weight(parameter)` is asked for every
// parameter that this rank holds together with others: contiguous, of one dtype on all its holders;
// read at the primary, overwritten elsewhere. Dense parameters are left alone: every rank steps
// them.
void BroadcastWeights(std::span<const HeldParameter> parameters, Communicator& data,
                      const std::function<at::Tensor(int parameter)>& weight);

}  // namespace moesaic
