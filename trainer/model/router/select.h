// select: scores -> the experts of each token.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moesaic {

// The K experts of the largest score of each row, largest first; equal scores go to the lowest
// expert id. scores fp32 [n, E], K <= E -> int64 [n, K].
at::Tensor SelectTopK(const at::Tensor& scores, int64_t active);

// Chosen pairs by expert. selected int64 [n, K] with ids below `experts`, or -1.
std::vector<int64_t> CountByExpert(const at::Tensor& selected, int64_t experts);

// ceil(factor * tokens * active / experts): what one expert takes of a logical micro-batch.
int64_t ExpertCapacity(double factor, int64_t tokens, int64_t active, int64_t experts);

// Sets to -1 every pair of `selected` that comes, in token order, after `capacity` others of its
// expert. Returns how many.
int64_t DropBeyondCapacity(int64_t capacity, int64_t experts, at::Tensor& selected);

}  // namespace moesaic
