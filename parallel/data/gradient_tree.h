// Gradients of reproducible mode: each (parameter, use, micro-batch) is a leaf of its own, and
// leaves are summed in the fixed tree of SumTree over micro_batch * uses + use. The bits do not
// depend on which rank brought which leaf, in which order they came, or on the number of ranks.
//
// A leaf that nobody reports is a zero. That is exact: x + 0 is x but for the sign of zero, and
// roots are brought to +0. Reporting zero leaves (overwriting the slot with zeros) changes no bit.
//
// Siblings are added as soon as both are there, so a rank keeps at most about log2(leaves) partial
// sums of a parameter whose leaves come in order.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "parallel/comm/communicator.h"
#include "parallel/data/gradients.h"
#include "parallel/layout/gradient_layout.h"

namespace moesaic {

struct GradientTreeOptions {
  // Parameters are exchanged in batches of about this size.
  int64_t batch_bytes = kGradientBatchBytes;
};

// `data` must outlive the result. Slots never accumulate. A leaf closed twice is a TORCH_CHECK.
std::unique_ptr<GradientReducer> MakeGradientTree(std::span<const HeldParameter> parameters,
                                                  Communicator* data,
                                                  const GradientTreeOptions& options = {});

}  // namespace moesaic
