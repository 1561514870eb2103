// How the tests of the kernels compare with a reference in fp64.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace moesaic {

// Of the reference's largest element: fp32 arithmetic, or bf16 operands and results (8 bits).
inline double Tolerance(at::ScalarType type) { return type == at::kFloat ? 3e-6 : 1.0 / 128; }

inline void ExpectClose(const at::Tensor& got, const at::Tensor& want, double tolerance) {
  ASSERT_EQ(got.sizes(), want.sizes());
  if (want.numel() == 0) return;
  const double scale = std::max(want.abs().max().item<double>(), 0.1);
  EXPECT_LE((got.to(at::kDouble) - want.to(at::kDouble)).abs().max().item<double>(),
            tolerance * scale);
}

// A leaf in fp64 with the same (rounded) values, for autograd.
inline at::Tensor Leaf(const at::Tensor& t) {
  return t.detach().to(at::kDouble).clone().requires_grad_(true);
}

inline constexpr at::ScalarType kComputeTypes[] = {at::kFloat, at::kBFloat16};

}  // namespace moesaic
