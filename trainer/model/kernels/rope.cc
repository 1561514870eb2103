#include <algorithm>
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

namespace {

// What the passes over q and k share, checked.
struct HeadLayout {
  HeadLayout(const char* who, const AttentionShape& shape, const RopeTable& table,
             int64_t first_position, const at::Tensor& qkv)
      : n(shape.sequences * shape.length),
        half(shape.head_width / 2),
        rotated(shape.heads + shape.kv_heads),
        width((rotated + shape.kv_heads) * shape.head_width) {
    CheckTensor(who, qkv, {n, width}, qkv.scalar_type());
    CheckTensor(who, table.cos, {table.cos.size(0), half}, at::kFloat);
    CheckTensor(who, table.sin, table.cos.sizes(), at::kFloat);
    TORCH_CHECK(first_position >= 0 && first_position + shape.length <= table.cos.size(0), who,
                ": positions up to ", first_position + shape.length, " exceed the table of ",
                table.cos.size(0));
  }

  int64_t n;        // tokens
  int64_t half;     // of a head
  int64_t rotated;  // heads: queries and keys
  int64_t width;    // of a row of qkv
};

void CheckGains(const char* who, const AttentionShape& shape, const HeadGains& gains) {
  CheckTensor(who, gains.q, {shape.head_width}, at::kFloat);
  CheckTensor(who, gains.k, {shape.head_width}, at::kFloat);
}

// The queries and the keys of the tokens at one position.
class RowsAt {
 public:
  RowsAt(const AttentionShape& shape, const HeadGains& gains, const RopeTable& table)
      : half_(shape.head_width / 2), cos_(Data<float>(table.cos)), sin_(Data<float>(table.sin)) {
    const auto epsilon = static_cast<float>(gains.epsilon);
    rows_[0] = {shape.heads, shape.head_width, Data<float>(gains.q), epsilon, nullptr, nullptr};
    rows_[1] = {shape.kv_heads, shape.head_width, Data<float>(gains.k), epsilon, nullptr, nullptr};
  }

  HeadRows Get(int64_t position, bool keys) const {
    HeadRows rows = rows_[keys];
    rows.cos = cos_ + position * half_;
    rows.sin = sin_ + position * half_;
    return rows;
  }

 private:
  int64_t half_;
  const float* cos_;
  const float* sin_;
  HeadRows rows_[2];
};

}  // namespace

void ApplyRope(const AttentionShape& shape, const RopeTable& table, int64_t first_position,
               bool inverse, at::Tensor& qkv) {
  const HeadLayout layout("ApplyRope", shape, table, first_position, qkv);
  WithComputeType(qkv, [&](auto type) {
    using T = decltype(type);
    ParallelRows(layout.n, layout.width, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t position = (first_position + t % shape.length) * layout.half;
        ActiveRowKernelsOf<T>().rotate_heads(
            Data<T>(qkv) + t * layout.width, layout.rotated, shape.head_width,
            Data<float>(table.cos) + position, Data<float>(table.sin) + position,
            inverse ? -1.0f : 1.0f);
      }
    });
  });
}

void NormAndRotate(const AttentionShape& shape, const HeadGains& gains, const RopeTable& table,
                   int64_t first_position, at::Tensor& qkv, HeadNormSaved* saved) {
  const HeadLayout layout("NormAndRotate", shape, table, first_position, qkv);
  CheckGains("NormAndRotate", shape, gains);
  const int64_t raw_width = layout.rotated * shape.head_width;
  if (saved != nullptr) {
    saved->raw = at::empty({layout.n, raw_width}, qkv.options());
    saved->inverse_rms = at::empty({layout.n, layout.rotated}, at::kFloat);
  }
  WithComputeType(qkv, [&](auto type) {
    using T = decltype(type);
    const RowsAt rows(shape, gains, table);
    T* heads = Data<T>(qkv);
    T* raw = saved != nullptr ? Data<T>(saved->raw) : nullptr;
    float* inverse_rms = saved != nullptr ? Data<float>(saved->inverse_rms) : nullptr;
    ParallelRows(layout.n, layout.width, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (const bool keys : {false, true}) {
          const int64_t first = keys ? shape.heads : 0;
          ActiveRowKernelsOf<T>().norm_rotate_heads(
              rows.Get(first_position + t % shape.length, keys),
              heads + t * layout.width + first * shape.head_width,
              raw ? raw + t * raw_width + first * shape.head_width : nullptr,
              inverse_rms ? inverse_rms + t * layout.rotated + first : nullptr);
        }
      }
    });
  });
}

void NormAndRotateBackward(const AttentionShape& shape, const HeadGains& gains,
                           const RopeTable& table, const HeadNormSaved& saved, at::Tensor& dqkv,
                           at::Tensor& dgain) {
  constexpr int64_t kTokensASum = 64;
  const char* who = "NormAndRotateBackward";
  const HeadLayout layout(who, shape, table, 0, dqkv);
  const int64_t raw_width = layout.rotated * shape.head_width;
  CheckGains(who, shape, gains);
  CheckTensor(who, saved.raw, {layout.n, raw_width}, dqkv.scalar_type());
  CheckTensor(who, saved.inverse_rms, {layout.n, layout.rotated}, at::kFloat);
  CheckTensor(who, dgain, {2, shape.head_width}, at::kFloat);
  const int64_t chunks = (layout.n + kTokensASum - 1) / kTokensASum;
  const at::Tensor sums = at::zeros({chunks, 2, shape.head_width}, at::kFloat);
  WithComputeType(dqkv, [&](auto type) {
    using T = decltype(type);
    const RowsAt rows(shape, gains, table);
    T* heads = Data<T>(dqkv);
    const T* raw = Data<T>(saved.raw);
    const float* inverse_rms = Data<float>(saved.inverse_rms);
    float* dgains = Data<float>(sums);
    ParallelRows(chunks, kTokensASum * layout.width, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin * kTokensASum; t < std::min(end * kTokensASum, layout.n); ++t) {
        for (const bool keys : {false, true}) {
          const int64_t first = keys ? shape.heads : 0;
          ActiveRowKernelsOf<T>().norm_rotate_heads_backward(
              rows.Get(t % shape.length, keys),
              heads + t * layout.width + first * shape.head_width,
              raw + t * raw_width + first * shape.head_width,
              inverse_rms + t * layout.rotated + first,
              dgains + (2 * (t / kTokensASum) + keys) * shape.head_width);
        }
      }
    });
  });
  dgain.zero_();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) dgain.add_(sums.select(0, chunk));
}

}  // namespace moesaic
