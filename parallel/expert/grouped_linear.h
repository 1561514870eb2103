// Grouped linear products: y = x W^T over contiguous groups of rows, each with a weight of its own.
// One group is an ordinary linear layer; all matrix products of the model but attention's go
// through here, so that the library behind them is chosen in one place and measured (bench/).
//
// Types: x, W, y, dy, dx all float32 or all bfloat16 (accumulated in fp32); dW is always float32.
// Rows of a group may be 0. Row-major contiguous tensors; W [out, in].
//
// Bits: the result of one group depends only on that group's operands (not on other groups, nor on
// where the rows lie), for one binary, CPU class and thread count. Reproducible mode rests on it.
#pragma once

#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

namespace moesaic {

// Rows [begin, begin + rows) of the batch, and the weight [out, in] they meet.
struct LinearGroup {
  int64_t begin = 0;
  int64_t rows = 0;
  at::Tensor weight;
};

// y [n, out]; rows in no group are left alone. Groups must not overlap. y may be float32 where x
// and W are bfloat16: the sums, not rounded.
void GroupedLinear(const at::Tensor& x, std::span<const LinearGroup> groups, at::Tensor& y);

// dx [n, in] = dy W.
void GroupedLinearBackwardInput(const at::Tensor& dy, std::span<const LinearGroup> groups,
                                at::Tensor& dx);

// Where a weight gradient goes: fp32 [out, in], overwritten or added to.
struct WeightGradient {
  int64_t begin = 0;
  int64_t rows = 0;      // 0 rows: overwrites with zeros, or adds nothing
  at::Tensor gradient;   // fp32 [out, in], contiguous (often a view into a bucket)
  bool accumulate = false;
};

// gradient (+)= dy^T x over the rows of each group.
void GroupedLinearBackwardWeight(const at::Tensor& dy, const at::Tensor& x,
                                 std::span<const WeightGradient> groups);

}  // namespace moesaic
