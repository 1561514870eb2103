// The bodies behind RowKernelTable; included once by each row_kernels_<level>.cc.
#pragma once

#include "trainer/model/kernels/row_kernels.h"
#include "parallel/simd/simd.h"

namespace moesaic {
namespace {

template <class T>
void RmsNormRows(const T* x, const float* w, float epsilon, T* y, float* inverse_rms, int64_t rows,
                 int64_t width) {
  for (int64_t i = 0; i < rows; ++i, x += width, y += width) {
    VecF sum{};
    ForEachVector(width, [&](int64_t c, auto lanes) {
      const VecF v = Load(x + c, lanes);
      sum = MulAdd(v, v, sum);
    });
    const float r = 1.0f / __builtin_sqrtf(SumLanes(sum) / (float)width + epsilon);
    if (inverse_rms != nullptr) inverse_rms[i] = r;
    ForEachVector(width, [&](int64_t c, auto lanes) {
      Store(y + c, Load(x + c, lanes) * r * Load(w + c, lanes), lanes);
    });
  }
}

// With g = dy w: dx = r g - x r^3 <g, x> / d.
template <class T>
void RmsNormBackwardInputRows(const T* dy, const T* x, const float* w, const float* inverse_rms,
                              const T* residual, T* dx, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i, dy += width, x += width, dx += width) {
    VecF sum{};
    ForEachVector(width, [&](int64_t c, auto lanes) {
      sum = MulAdd(Load(dy + c, lanes) * Load(w + c, lanes), Load(x + c, lanes), sum);
    });
    const float r = inverse_rms[i];
    const VecF along_x = Splat(-r * r * r * SumLanes(sum) / (float)width);
    ForEachVector(width, [&](int64_t c, auto lanes) {
      const VecF g = Load(dy + c, lanes) * Load(w + c, lanes);
      VecF d = MulAdd(Load(x + c, lanes), along_x, g * r);
      if (residual != nullptr) d += Load(residual + i * width + c, lanes);
      Store(dx + c, d, lanes);
    });
  }
}

template <class T>
void RmsNormBackwardWeightColumns(const T* dy, const T* x, const float* inverse_rms, float* dw,
                                  int64_t rows, int64_t width, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i, dy += width, x += width) {
    const VecF r = Splat(inverse_rms[i]);
    ForEachVector(columns, [&](int64_t c, auto lanes) {
      const VecF product = Load(dy + c, lanes) * Load(x + c, lanes);
      Store(dw + c, MulAdd(product, r, Load(dw + c, lanes)), lanes);
    });
  }
}

template <class T>
void RotateHeads(T* head, int64_t heads, int64_t head_width, const float* cos, const float* sin,
                 float sign) {
  const int64_t half = head_width / 2;
  for (int64_t h = 0; h < heads; ++h, head += head_width) {
    ForEachVector(half, [&](int64_t c, auto lanes) {
      const VecF a = Load(head + c, lanes), b = Load(head + half + c, lanes);
      const VecF co = Load(cos + c, lanes), si = Load(sin + c, lanes) * sign;
      Store(head + c, MulAdd(a, co, -(b * si)), lanes);
      Store(head + half + c, MulAdd(b, co, a * si), lanes);
    });
  }
}

template <class T>
void NormRotateHeads(const HeadRows& rows, T* head, T* raw, float* inverse_rms) {
  const int64_t width = rows.head_width, half = width / 2;
  for (int64_t h = 0; h < rows.heads; ++h, head += width) {
    VecF sum{};
    ForEachVector(width, [&](int64_t c, auto lanes) {
      const VecF v = Load(head + c, lanes);
      sum = MulAdd(v, v, sum);
      if (raw != nullptr) Store(raw + h * width + c, v, lanes);
    });
    const float r = 1.0f / __builtin_sqrtf(SumLanes(sum) / (float)width + rows.epsilon);
    if (inverse_rms != nullptr) inverse_rms[h] = r;
    ForEachVector(half, [&](int64_t c, auto lanes) {
      const VecF a = Load(head + c, lanes) * r * Load(rows.gain + c, lanes);
      const VecF b = Load(head + half + c, lanes) * r * Load(rows.gain + half + c, lanes);
      const VecF co = Load(rows.cos + c, lanes), si = Load(rows.sin + c, lanes);
      Store(head + c, MulAdd(a, co, -(b * si)), lanes);
      Store(head + half + c, MulAdd(b, co, a * si), lanes);
    });
  }
}

// With dy the gradient rotated back, g = dy gain: dx = r g - x r^3 <g, x> / d, dgain = dy x r.
template <class T>
void NormRotateHeadsBackward(const HeadRows& rows, T* dhead, const T* raw, const float* inverse_rms,
                             float* dgain) {
  const int64_t width = rows.head_width, half = width / 2;
  for (int64_t h = 0; h < rows.heads; ++h, dhead += width, raw += width) {
    const float r = inverse_rms[h];
    // body(c, lanes, dy[c], dy[half + c]).
    const auto for_each_pair = [&](auto body) {
      ForEachVector(half, [&](int64_t c, auto lanes) {
        const VecF a = Load(dhead + c, lanes), b = Load(dhead + half + c, lanes);
        const VecF co = Load(rows.cos + c, lanes), si = Load(rows.sin + c, lanes);
        body(c, lanes, MulAdd(a, co, b * si), MulAdd(b, co, -(a * si)));
      });
    };
    VecF sum{};
    for_each_pair([&](int64_t c, auto lanes, VecF dy_a, VecF dy_b) {
      const VecF along_a = dy_a * Load(raw + c, lanes), along_b = dy_b * Load(raw + half + c, lanes);
      sum = MulAdd(along_a, Load(rows.gain + c, lanes), sum);
      sum = MulAdd(along_b, Load(rows.gain + half + c, lanes), sum);
      Store(dgain + c, MulAdd(along_a, Splat(r), Load(dgain + c, lanes)), lanes);
      Store(dgain + half + c, MulAdd(along_b, Splat(r), Load(dgain + half + c, lanes)), lanes);
    });
    const VecF along_x = Splat(-r * r * r * SumLanes(sum) / (float)width);
    for_each_pair([&](int64_t c, auto lanes, VecF dy_a, VecF dy_b) {
      const VecF g_a = dy_a * Load(rows.gain + c, lanes) * r;
      const VecF g_b = dy_b * Load(rows.gain + half + c, lanes) * r;
      Store(dhead + c, MulAdd(Load(raw + c, lanes), along_x, g_a), lanes);
      Store(dhead + half + c, MulAdd(Load(raw + half + c, lanes), along_x, g_b), lanes);
    });
  }
}

MOESAIC_INLINE VecF Sigmoid(VecF g) { return Splat(1.0f) / (Exp(-g) + 1.0f); }

template <class T>
void SwiGluRows(const T* gate_up, T* activation, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i, gate_up += 2 * width, activation += width) {
    ForEachVector(width, [&](int64_t c, auto lanes) {
      const VecF g = Load(gate_up + c, lanes), u = Load(gate_up + width + c, lanes);
      Store(activation + c, g * Sigmoid(g) * u, lanes);
    });
  }
}

// With s = sigmoid(g): dg = da u s (1 + g (1 - s)), du = da g s.
template <class T>
void SwiGluBackwardRows(const T* dactivation, const T* gate_up, T* dgate_up, int64_t rows,
                        int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    ForEachVector(width, [&](int64_t c, auto lanes) {
      const VecF g = Load(gate_up + c, lanes), u = Load(gate_up + width + c, lanes);
      const VecF da = Load(dactivation + c, lanes);
      const VecF s = Sigmoid(g);
      const VecF silu = g * s;
      Store(dgate_up + c, da * u * MulAdd(silu, Splat(1.0f) - s, s), lanes);
      Store(dgate_up + width + c, da * silu, lanes);
    });
    dactivation += width;
    gate_up += 2 * width;
    dgate_up += 2 * width;
  }
}

template <class T>
void CombineRowsOf(const T* rows, const int64_t* position, const float* weights, const T* add, T* out,
                   int64_t tokens, int64_t fan, int64_t width) {
  for (int64_t t = 0; t < tokens; ++t, out += width) {
    ForEachVector(width, [&](int64_t c, auto lanes) {
      VecF sum{};
      if (add != nullptr) sum = Load(add + t * width + c, lanes);
      for (int64_t k = t * fan; k < (t + 1) * fan; ++k) {
        if (position[k] < 0) continue;
        const VecF row = Load(rows + position[k] * width + c, lanes);
        sum = weights == nullptr ? sum + row : MulAdd(row, Splat(weights[k]), sum);
      }
      Store(out + c, sum, lanes);
    });
  }
}

template <class T>
void CombineRowsBackwardOf(const T* dout, const T* rows, const int64_t* position,
                           const float* weights, T* drows, float* dweights, int64_t tokens,
                           int64_t fan, int64_t width) {
  for (int64_t t = 0; t < tokens; ++t, dout += width) {
    for (int64_t k = t * fan; k < (t + 1) * fan; ++k) {
      if (position[k] < 0) {
        if (dweights != nullptr) dweights[k] = 0;
        continue;
      }
      const T* row = rows + position[k] * width;
      T* drow = drows + position[k] * width;
      const float weight = weights == nullptr ? 1.0f : weights[k];
      VecF sum{};
      ForEachVector(width, [&](int64_t c, auto lanes) {
        const VecF d = Load(dout + c, lanes);
        sum = MulAdd(d, Load(row + c, lanes), sum);
        Store(drow + c, d * weight, lanes);
      });
      if (dweights != nullptr) dweights[k] = SumLanes(sum);
    }
  }
}

template <class T>
void AddRow(const T* row, float* into, int64_t columns) {
  ForEachVector(columns, [&](int64_t c, auto lanes) {
    Store(into + c, Load(into + c, lanes) + Load(row + c, lanes), lanes);
  });
}

template <class T>
float Dot(const T* a, const T* b, int64_t n) {
  VecF sum{};
  ForEachVector(n, [&](int64_t c, auto lanes) {
    sum = MulAdd(Load(a + c, lanes), Load(b + c, lanes), sum);
  });
  return SumLanes(sum);
}

template <class T>
void AddScaled(const T* row, float factor, float* into, int64_t n) {
  ForEachVector(n, [&](int64_t c, auto lanes) {
    Store(into + c, MulAdd(Load(row + c, lanes), Splat(factor), Load(into + c, lanes)), lanes);
  });
}

template <class T>
void ScaleTo(const float* from, float factor, T* to, int64_t n) {
  ForEachVector(n, [&](int64_t c, auto lanes) { Store(to + c, Load(from + c, lanes) * factor, lanes); });
}

// m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w = w (1 - lr wd) - lr m^ / (sqrt(v^) + eps).
template <class T>
void AdamW(const AdamWCoefficients& k, const float* gradient, float* master, float* m, float* v,
           T* compute, int64_t n) {
  const VecF beta1 = Splat(k.beta1), rest1 = Splat(1.0f - k.beta1);
  const VecF beta2 = Splat(k.beta2), rest2 = Splat(1.0f - k.beta2);
  const VecF keep = Splat(1.0f - k.lr * k.weight_decay);
  const VecF step = Splat(-k.lr / k.bias_correction1);
  const VecF root_correction = Splat(1.0f / __builtin_sqrtf(k.bias_correction2));
  ForEachVector(n, [&](int64_t i, auto lanes) {
    const VecF g = Load(gradient + i, lanes) * k.gradient_scale;
    const VecF m_new = MulAdd(Load(m + i, lanes), beta1, g * rest1);
    const VecF v_new = MulAdd(Load(v + i, lanes), beta2, g * g * rest2);
    const VecF denominator = MulAdd(SquareRoot(v_new), root_correction, Splat(k.epsilon));
    const VecF w = MulAdd(step, m_new / denominator, Load(master + i, lanes) * keep);
    Store(m + i, m_new, lanes);
    Store(v + i, v_new, lanes);
    Store(master + i, w, lanes);
    if (compute != nullptr) Store(compute + i, w, lanes);
  });
}

float MaxOf(const float* x, int64_t n) {
  VecF top = Splat(-__builtin_inff());
  ForEachVector(n, [&](int64_t c, auto lanes) {
    top = Max(Keep(Load(x + c, lanes), -__builtin_inff(), lanes), top);
  });
  return MaxLanes(top);
}

// Which of the 16 keys from c on are in [first, last].
MOESAIC_INLINE VecI Seen(int64_t c, int64_t first, int64_t last) {
  const VecI key = VecI{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int32_t)c;
  return (key >= VecI{} + (int32_t)first) & (key <= VecI{} + (int32_t)last);
}

// body(c) for the vectors that hold a seen key; zero(c) for the others.
template <class Body, class Zero>
MOESAIC_INLINE void ForEachSeen(int64_t first, int64_t last, int64_t keys, Body body, Zero zero) {
  const int64_t begin = first / kLanes * kLanes, end = last / kLanes * kLanes + kLanes;
  for (int64_t c = 0; c < begin; c += kLanes) zero(c);
  for (int64_t c = begin; c < end; c += kLanes) body(c);
  for (int64_t c = end; c < keys; c += kLanes) zero(c);
}

template <class T>
float AttentionSoftmax(const float* scores, int64_t first, int64_t last, int64_t keys, float scale,
                       T* p) {
  const VecF low = Splat(-__builtin_inff());
  const auto nothing = [](int64_t) {};
  VecF top_lanes = low;
  ForEachSeen(first, last, keys, [&](int64_t c) {
    top_lanes = Max(Seen(c, first, last) ? Load(scores + c, AllLanes{}) : low, top_lanes);
  }, nothing);
  const float top = MaxLanes(top_lanes) * scale;
  VecF sum{};
  ForEachSeen(first, last, keys, [&](int64_t c) {
    const VecF e = Exp(MulAdd(Load(scores + c, AllLanes{}), Splat(scale), Splat(-top)));
    sum += Seen(c, first, last) ? e : VecF{};
  }, nothing);
  const float log_sum_exp = top + __builtin_logf(SumLanes(sum));
  ForEachSeen(first, last, keys, [&](int64_t c) {
    const VecF e = Exp(MulAdd(Load(scores + c, AllLanes{}), Splat(scale), Splat(-log_sum_exp)));
    Store(p + c, Seen(c, first, last) ? e : VecF{}, AllLanes{});
  }, [&](int64_t c) { Store(p + c, VecF{}, AllLanes{}); });
  return log_sum_exp;
}

template <class T>
void AttentionBackwardRow(const AttentionRow& row, const float* scores, const float* dp, T* p,
                          T* dscores) {
  ForEachSeen(row.first, row.last, row.keys, [&](int64_t c) {
    VecF e = Exp(MulAdd(Load(scores + c, AllLanes{}), Splat(row.scale), Splat(-row.log_sum_exp)));
    e = Seen(c, row.first, row.last) ? e : VecF{};
    const VecF d = (Load(dp + c, AllLanes{}) - row.delta) * (e * row.scale);
    Store(p + c, e, AllLanes{});
    Store(dscores + c, Seen(c, row.first, row.last) ? d : VecF{}, AllLanes{});
  }, [&](int64_t c) {
    Store(p + c, VecF{}, AllLanes{});
    Store(dscores + c, VecF{}, AllLanes{});
  });
}

float LogSumExp(const float* logits, int64_t n) {
  const float top = MaxOf(logits, n);
  VecF sum{};
  ForEachVector(n, [&](int64_t c, auto lanes) {
    sum += Keep(Exp(Load(logits + c, lanes) - top), 0.0f, lanes);
  });
  return top + __builtin_logf(SumLanes(sum));
}

void ScaledSoftmax(float* logits, float log_sum_exp, float scale, int64_t n) {
  ForEachVector(n, [&](int64_t c, auto lanes) {
    Store(logits + c, Exp(Load(logits + c, lanes) - log_sum_exp) * scale, lanes);
  });
}

typedef double VecD __attribute__((vector_size(64)));
typedef float VecF8 __attribute__((vector_size(32)));

double SumSquares(const float* x, int64_t n) {
  VecD low{}, high{};
  ForEachVector(n, [&](int64_t c, auto lanes) {
    const VecF v = Load(x + c, lanes);
    VecF8 half[2];
    memcpy(half, &v, sizeof(v));
    const VecD a = __builtin_convertvector(half[0], VecD), b = __builtin_convertvector(half[1], VecD);
    low += a * a;
    high += b * b;
  });
  low += high;
  double sum = 0;
  for (int i = 0; i < 8; ++i) sum += low[i];
  return sum;
}

bool AllFinite(const float* x, int64_t n) {
  VecF sum{};  // x - x is 0, and NaN where x is not finite
  ForEachVector(n, [&](int64_t c, auto lanes) {
    const VecF v = Load(x + c, lanes);
    sum += v - v;
  });
  return SumLanes(sum) == 0.0f;
}

MOESAIC_INLINE VecF Tanh(VecF x) { return MulAdd(Splat(2.0f), Sigmoid(x + x), Splat(-1.0f)); }

template <class Lanes>
MOESAIC_INLINE VecF LoadOrZero(const float* row, int64_t c, Lanes lanes) {
  return row == nullptr ? VecF{} : Load(row + c, lanes);
}

MOESAIC_INLINE const float* RowOrNull(const float* rows, int64_t i, int64_t width) {
  return rows == nullptr ? nullptr : rows + i * width;
}

void GruStepRows(GruRows step, int64_t rows, int64_t p) {
  for (int64_t i = 0; i < rows; ++i) {
    const float *input = step.input + i * 3 * p, *hidden = RowOrNull(step.hidden, i, 3 * p);
    const float* before = RowOrNull(step.before, i, p);
    float *gates = step.gates + i * 4 * p, *after = step.after + i * p;
    ForEachVector(p, [&](int64_t c, auto lanes) {
      const auto from_u = [&](int64_t at) {
        return Load(input + at, lanes) + Load(step.input_bias + at, lanes);
      };
      const auto from_h = [&](int64_t at) {
        return LoadOrZero(hidden, at, lanes) + Load(step.hidden_bias + at, lanes);
      };
      const VecF r = Sigmoid(from_u(c) + from_h(c));
      const VecF z = Sigmoid(from_u(p + c) + from_h(p + c));
      const VecF q = from_h(2 * p + c);
      const VecF n = Tanh(MulAdd(r, q, from_u(2 * p + c)));
      Store(gates + c, r, lanes);
      Store(gates + p + c, z, lanes);
      Store(gates + 2 * p + c, n, lanes);
      Store(gates + 3 * p + c, q, lanes);
      Store(after + c, MulAdd(z, LoadOrZero(before, c, lanes) - n, n), lanes);
    });
  }
}

// dn = d (1 - z) (1 - n^2), dr = dn q r (1 - r), dz = d (h - n) z (1 - z).
void GruStepBackwardRows(GruGradientRows step, int64_t rows, int64_t p) {
  for (int64_t i = 0; i < rows; ++i) {
    const float *dafter = step.dafter + i * p, *gates = step.gates + i * 4 * p;
    const float* before = RowOrNull(step.before, i, p);
    float *dinput = step.dinput + i * 3 * p, *dhidden = step.dhidden + i * 3 * p;
    ForEachVector(p, [&](int64_t c, auto lanes) {
      const VecF d = Load(dafter + c, lanes);
      const VecF r = Load(gates + c, lanes), z = Load(gates + p + c, lanes);
      const VecF n = Load(gates + 2 * p + c, lanes), q = Load(gates + 3 * p + c, lanes);
      const VecF dn = d * (1.0f - z) * (1.0f - n * n);
      const VecF dr = dn * q * r * (1.0f - r);
      const VecF dz = d * (LoadOrZero(before, c, lanes) - n) * z * (1.0f - z);
      Store(dinput + c, dr, lanes);
      Store(dinput + p + c, dz, lanes);
      Store(dinput + 2 * p + c, dn, lanes);
      Store(dhidden + c, dr, lanes);
      Store(dhidden + p + c, dz, lanes);
      Store(dhidden + 2 * p + c, dn * r, lanes);
      if (before != nullptr) Store(step.dbefore + i * p + c, d * z, lanes);
    });
  }
}

template <class T>
constexpr RowKernels<T> MakeRowKernels() {
  return {RmsNormRows<T>,  RmsNormBackwardInputRows<T>, RmsNormBackwardWeightColumns<T>,
          RotateHeads<T>,  NormRotateHeads<T>,          NormRotateHeadsBackward<T>,
          SwiGluRows<T>,   SwiGluBackwardRows<T>,
          CombineRowsOf<T>, CombineRowsBackwardOf<T>,   AddRow<T>,
          Dot<T>,          AddScaled<T>,                ScaleTo<T>,
          AttentionSoftmax<T>, AttentionBackwardRow<T>, AdamW<T>};
}

constexpr RowKernelTable MakeRowKernelTable() {
  return {MakeRowKernels<float>(),
          MakeRowKernels<Bf16>(),
          {LogSumExp, ScaledSoftmax, SumSquares, AllFinite, GruStepRows, GruStepBackwardRows}};
}

}  // namespace
}  // namespace moesaic
