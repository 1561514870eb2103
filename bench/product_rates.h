// The best rate at which any library at hand computes the products of one shape, on one thread: what
// floors are made of.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include <ATen/core/Tensor.h>

namespace moesaic {

// `groups` weights [out, in], each meeting `rows` rows.
struct ProductShape {
  int64_t groups = 1;
  int64_t rows = 0;
  int64_t out = 0;
  int64_t in = 0;
};

enum class ProductPass { kForward, kBackwardInput, kBackwardWeight };
inline constexpr std::array kProductPasses = {ProductPass::kForward, ProductPass::kBackwardInput,
                                              ProductPass::kBackwardWeight};

// CPU seconds of the whole shape (all groups) in one pass, by each library.
struct ProductSeconds {
  double grouped_linear = 0;  // parallel/expert/grouped_linear.h
  double aten = 0;            // at::mm
  double mkl = 0;             // called directly
  double onednn = 0;

  double best() const { return std::min({grouped_linear, aten, mkl, onednn}); }
};
ProductSeconds MeasureProducts(const ProductShape& shape, ProductPass pass, at::ScalarType type);

// CPU seconds of `matrices` products [length, width] x [width, length] (attention's scores), the
// whole square, by at::bmm.
double BestAttentionProductSeconds(int64_t matrices, int64_t length, int64_t width,
                                   at::ScalarType type);

}  // namespace moesaic
