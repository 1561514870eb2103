// The loops over rows behind kernels.h and optimizer_kernels.h, on raw pointers, compiled once for
// each CPU level (row_kernels_*.cc) and chosen at run time. Rows are contiguous; sizes are trusted:
// the callers check them. Thread-safe; a call works on the rows it is given, on one thread.
#pragma once

#include <stdint.h>

#include "parallel/simd/bf16.h"

namespace moesaic {

struct AdamWCoefficients {
  float lr = 0;
  float beta1 = 0;
  float beta2 = 0;
  float epsilon = 0;
  float weight_decay = 0;
  float bias_correction1 = 1;  // 1 - beta1^t
  float bias_correction2 = 1;  // 1 - beta2^t
  float gradient_scale = 1;    // multiplies the gradient first (clipping)
};

struct AttentionRow {
  int64_t first = 0;
  int64_t last = 0;
  int64_t keys = 0;
  float scale = 1;
  float log_sum_exp = 0;
  float delta = 0;  // <dout, out>
};

// Adjacent heads of one token that share a gain.
struct HeadRows {
  int64_t heads = 0;
  int64_t head_width = 0;
  const float* gain = nullptr;
  float epsilon = 0;  // of the forward
  const float* cos = nullptr;  // of the token's position
  const float* sin = nullptr;
};

// A step of a gated recurrent unit (trainer/model/router/gru_cell.h), p wide. No h: it is 0.
struct GruRows {
  const float* input = nullptr;        // [rows, 3 p]: W_i u
  const float* hidden = nullptr;       // [rows, 3 p]: W_h h; null when there is no h
  const float* input_bias = nullptr;   // [3 p]
  const float* hidden_bias = nullptr;  // [3 p]
  const float* before = nullptr;       // [rows, p]: h; may be null
  float* gates = nullptr;              // [rows, 4 p]: r, z, n, and W_hn h + b_hn
  float* after = nullptr;              // [rows, p]: h'
};

struct GruGradientRows {
  const float* dafter = nullptr;  // [rows, p]
  const float* before = nullptr;  // [rows, p]; may be null, dbefore is then not written
  const float* gates = nullptr;   // [rows, 4 p], of the step
  float* dinput = nullptr;        // [rows, 3 p]: at W_i u + b_i
  float* dhidden = nullptr;       // [rows, 3 p]: at W_h h + b_h
  float* dbefore = nullptr;       // [rows, p]: at h, through z h alone
};

// T: float or Bf16.
template <class T>
struct RowKernels {
  void (*rms_norm)(const T* x, const float* w, float epsilon, T* y, float* inverse_rms,
                   int64_t rows, int64_t width);
  // residual may be null.
  void (*rms_norm_backward_input)(const T* dy, const T* x, const float* w, const float* inverse_rms,
                                  const T* residual, T* dx, int64_t rows, int64_t width);
  // dw[c] += over all rows, for the `columns` columns that the pointers start at.
  void (*rms_norm_backward_weight)(const T* dy, const T* x, const float* inverse_rms, float* dw,
                                   int64_t rows, int64_t width, int64_t columns);
  // Rotates `heads` adjacent heads of one token by the angles of its position; sign -1: back.
  void (*rotate_heads)(T* head, int64_t heads, int64_t head_width, const float* cos,
                       const float* sin, float sign);
  // RMSNorm of each of the heads with one gain, then the rotation. raw (the heads as they came) and
  // inverse_rms (one a head) are kept where they are not null.
  void (*norm_rotate_heads)(const HeadRows& rows, T* head, T* raw, float* inverse_rms);
  // The gradient of that, in place; dgain[c] += over the heads.
  void (*norm_rotate_heads_backward)(const HeadRows& rows, T* dhead, const T* raw,
                                     const float* inverse_rms, float* dgain);
  void (*swiglu)(const T* gate_up, T* activation, int64_t rows, int64_t width);
  void (*swiglu_backward)(const T* dactivation, const T* gate_up, T* dgate_up, int64_t rows,
                          int64_t width);
  // weights and add may be null; position and weights have `fan` entries a token.
  void (*combine)(const T* rows, const int64_t* position, const float* weights, const T* add, T* out,
                  int64_t tokens, int64_t fan, int64_t width);
  // dweights may be null when weights is.
  void (*combine_backward)(const T* dout, const T* rows, const int64_t* position,
                           const float* weights, T* drows, float* dweights, int64_t tokens,
                           int64_t fan, int64_t width);
  // into[c] += row[c].
  void (*add_row)(const T* row, float* into, int64_t columns);
  float (*dot)(const T* a, const T* b, int64_t n);
  // into[c] += factor * row[c].
  void (*add_scaled)(const T* row, float factor, float* into, int64_t n);
  // to[c] = factor * from[c].
  void (*scale_to)(const float* from, float factor, T* to, int64_t n);
  // One row of attention over keys [0, keys), of which [first, last] are seen; keys is a multiple of
  // 16. p = softmax(scale * scores), 0 where unseen; returns the log-sum-exp. p may be scores.
  float (*attention_softmax)(const float* scores, int64_t first, int64_t last, int64_t keys,
                             float scale, T* p);
  // p = exp(scale * scores - log_sum_exp), dscores = scale * p * (dp - delta); both 0 where unseen.
  // p may be scores and dscores may be dp.
  void (*attention_backward)(const AttentionRow& row, const float* scores, const float* dp, T* p,
                             T* dscores);
  // One pass over a flat span: master, m, v, and the compute weight (null: none).
  void (*adamw)(const AdamWCoefficients& coefficients, const float* gradient, float* master, float* m,
                float* v, T* compute, int64_t n);
};

// Those of fp32 only.
struct FloatKernels {
  // log(sum(exp(logits))).
  float (*log_sum_exp)(const float* logits, int64_t n);
  // logits become scale * exp(logits - log_sum_exp).
  void (*scaled_softmax)(float* logits, float log_sum_exp, float scale, int64_t n);
  double (*sum_squares)(const float* x, int64_t n);
  bool (*all_finite)(const float* x, int64_t n);
  void (*gru)(GruRows step, int64_t rows, int64_t width);
  void (*gru_backward)(GruGradientRows step, int64_t rows, int64_t width);
};

struct RowKernelTable {
  RowKernels<float> f32;
  RowKernels<Bf16> bf16;
  FloatKernels floats;
};

// The table of this CPU.
const RowKernelTable& ActiveRowKernels();

template <class T>
const RowKernels<T>& ActiveRowKernelsOf();
template <>
inline const RowKernels<float>& ActiveRowKernelsOf<float>() {
  return ActiveRowKernels().f32;
}
template <>
inline const RowKernels<Bf16>& ActiveRowKernelsOf<Bf16>() {
  return ActiveRowKernels().bf16;
}

// One a file and CPU level.
extern const RowKernelTable kRowKernelsGeneric;
extern const RowKernelTable kRowKernelsAvx2;
extern const RowKernelTable kRowKernelsAvx512;
extern const RowKernelTable kRowKernelsAvx512Bf16;

}  // namespace moesaic
