// How sums of gradients are cut and who computes them: pure functions of the list of parameters,
// for those who sum (parallel/data) and those who predict memory and traffic
// (trainer/catalog/sizing).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moesaic {

// No rank's part of a bucket is larger, unless one parameter is (fast mode).
inline constexpr int64_t kGradientBucketBytes = int64_t{25} << 20;
// Parameters are exchanged in batches of about this size (reproducible mode).
inline constexpr int64_t kGradientBatchBytes = int64_t{64} << 20;

struct SummedParameter {
  int64_t elements = 0;
  int primary = -1;  // rank that gets the sum; -1: the dense part, all ranks get it
};

// Rank that computes the root of each parameter's tree of sums: the primary; for a dense one the
// rank with the fewest elements so far, the lowest among equals.
std::vector<int> RootOwners(std::span<const SummedParameter> parameters, int ranks);

// Parameters [begin, end), consecutive, of one batch.
struct ParameterRange {
  int begin = 0;
  int end = 0;
};
std::vector<ParameterRange> GradientBatches(std::span<const SummedParameter> parameters,
                                            int64_t batch_elements);

}  // namespace moesaic
