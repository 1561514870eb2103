// Gradients of fast mode: fused flat fp32 buckets that blocks write into directly.
//
// A bucket holds either dense parameters, and is all-reduced, or parameters with holders, and each
// part goes to its primary only, which adds the parts in the order of the ranks. One exchange
// serves any holder sets. Buckets go in one order on all ranks, from the last parameter to the
// first, because backward does.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "parallel/comm/communicator.h"
#include "parallel/comm/lane.h"
#include "parallel/data/gradients.h"
#include "parallel/layout/gradient_layout.h"

namespace moesaic {

struct GradientBucketOptions {
  // No rank's part of a bucket is larger, unless one parameter is.
  int64_t bucket_bytes = kGradientBucketBytes;
  // Reduces buckets here as they become ready, beside backward; its communicator is a duplicate of
  // `data`. Null: all in Reduce(), which is faster where cores are scarce.
  Lane* lane = nullptr;
};

// `data` and the lane must outlive the result.
std::unique_ptr<GradientReducer> MakeGradientBuckets(std::span<const HeldParameter> parameters,
                                                     Communicator* data,
                                                     const GradientBucketOptions& options = {});

}  // namespace moesaic
