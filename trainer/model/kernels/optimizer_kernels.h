// The optimizer's passes over flat spans of fp32: one fused AdamW update, sums of squares and a test
// for non-finite values. Spans may start anywhere: what happens to an element does not depend on its
// place in the span, so an update cut into shards is equal bit for bit to one in a piece.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/simd/bf16.h"
#include "trainer/model/kernels/row_kernels.h"

namespace moesaic {

// The state of one shard; all of the same size. With g = gradient_scale * gradient (Loshchilov and
// Hutter, "Decoupled weight decay regularization"):
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   w = (1 - lr weight_decay) w - lr (m / bias_correction1) / (sqrt(v / bias_correction2) + epsilon)
// No element of `gradient` is changed.
struct AdamWSpans {
  std::span<const float> gradient;
  std::span<float> master;
  std::span<float> m;
  std::span<float> v;
};

// Also writes the new weight to `compute`: rounded to bfloat16, or as it is. A compute span may be
// empty: the caller has no use for it.
void AdamWStep(const AdamWCoefficients& coefficients, const AdamWSpans& spans,
               std::span<Bf16> compute);
void AdamWStep(const AdamWCoefficients& coefficients, const AdamWSpans& spans,
               std::span<float> compute);

// Elements a chunk of SumSquaresByChunk.
inline constexpr int64_t kNormChunk = 65536;

// The sum of squares, in double, of each kNormChunk elements of `x` (the last may be shorter). A norm
// is the sum of a parameter's chunks in order, so it is the same however shards lie, as long as
// their boundaries are multiples of kNormChunk from the parameter's start.
std::vector<double> SumSquaresByChunk(std::span<const float> x);

// Whether no element is infinite or NaN.
bool AllFinite(std::span<const float> x);

}  // namespace moesaic
