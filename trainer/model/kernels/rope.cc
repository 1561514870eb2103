#include <cmath>

#include "trainer/model/kernels/dispatch.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {

RopeTable MakeRopeTable(int64_t positions, int64_t head_width, double base) {
  TORCH_CHECK(head_width > 0 && head_width % 2 == 0, "MakeRopeTable: head_width must be even, got ",
              head_width);
  const int64_t half = head_width / 2;
  RopeTable table{at::empty({positions, half}, at::kFloat), at::empty({positions, half}, at::kFloat)};
  float* cos = Data<float>(table.cos);
  float* sin = Data<float>(table.sin);
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = p * std::pow(base, -2.0 * i / head_width);
      cos[p * half + i] = static_cast<float>(std::cos(angle));
      sin[p * half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

void ApplyRope(const AttentionShape& shape, const RopeTable& table, int64_t first_position,
               bool inverse, at::Tensor& qkv) {
  const int64_t n = shape.sequences * shape.length, half = shape.head_width / 2;
  const int64_t rotated = shape.heads + shape.kv_heads;
  const int64_t width = (rotated + shape.kv_heads) * shape.head_width;
  CheckTensor("ApplyRope: qkv", qkv, {n, width}, qkv.scalar_type());
  CheckTensor("ApplyRope: cos", table.cos, {table.cos.size(0), half}, at::kFloat);
  CheckTensor("ApplyRope: sin", table.sin, table.cos.sizes(), at::kFloat);
  TORCH_CHECK(first_position >= 0 && first_position + shape.length <= table.cos.size(0),
              "ApplyRope: positions up to ", first_position + shape.length, " exceed the table of ",
              table.cos.size(0));
  WithComputeType(qkv, [&](auto type) {
    using T = decltype(type);
    ParallelRows(n, width, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t position = (first_position + t % shape.length) * half;
        ActiveRowKernelsOf<T>().rotate_heads(Data<T>(qkv) + t * width, rotated, shape.head_width,
                                             Data<float>(table.cos) + position,
                                             Data<float>(table.sin) + position,
                                             inverse ? -1.0f : 1.0f);
      }
    });
  });
}

}  // namespace moesaic
