// capacity: which chosen pairs of a logical micro-batch are dropped because a bin of experts (one
// expert, or a group of them) took its share. A dropped pair contributes nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "proto/job.pb.h"

namespace moesaic {

// ceil(factor * tokens * active / bins): pairs that one bin takes.
int64_t BinCapacity(double factor, int64_t tokens, int64_t active, int64_t bins);

struct CapacityLimit {
  int64_t capacity = 0;  // pairs a bin
  int64_t bins = 1;      // expert e of E is in bin e * bins / E; divides E
  DropOrder order = LATEST;
  // By token: nothing of it is dropped, though it counts. Empty: no such token.
  std::vector<bool> exempt = {};
};

// Sets to -1 the pairs of `selected` (int64 [n, K]) beyond the limit: in token order those that
// come last, or those of the lowest score (of equal ones the last). scores fp32 [n, E]. Returns how
// many.
int64_t DropBeyondCapacity(const CapacityLimit& limit, const at::Tensor& scores,
                           at::Tensor& selected);

}  // namespace moesaic
