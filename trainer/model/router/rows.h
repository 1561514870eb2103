// Loops over the rows of the router's fp32 [n, width] tensors. A row's result depends on that row
// alone, so threads do not change bits.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "parallel/expert/parallel_for.h"

namespace moesaic {

inline constexpr int64_t kRouterRowGrain = 256;

inline std::span<const float> RowOf(const at::Tensor& t, int64_t row) {
  const int64_t width = t.size(1);
  return {t.const_data_ptr<float>() + row * width, static_cast<size_t>(width)};
}
inline std::span<float> MutableRowOf(const at::Tensor& t, int64_t row) {
  const int64_t width = t.size(1);
  return {t.data_ptr<float>() + row * width, static_cast<size_t>(width)};
}

template <typename Body>
void ForEachRow(const at::Tensor& in, at::Tensor& out, const Body& body) {
  ParallelFor(in.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(RowOf(in, row), MutableRowOf(out, row));
  });
}

template <typename Body>
void ForEachRow(const at::Tensor& a, const at::Tensor& b, at::Tensor& out, const Body& body) {
  ParallelFor(a.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      body(RowOf(a, row), RowOf(b, row), MutableRowOf(out, row));
    }
  });
}

}  // namespace moesaic
