// The element-wise, row-wise and attention kernels of the model: forward and backward, without
// autograd. Matrix products are in parallel/expert/grouped_linear.h.
//
// "compute" below is float32 or bfloat16, one type a call; arithmetic is fp32 inside. All tensors
// are contiguous and row-major on the CPU; outputs are allocated by the caller and overwritten unless
// said otherwise. n (rows) may be 0. Results depend on the operands and the thread count only.
// Shapes are checked with TORCH_CHECK (a wrong one is a bug of the caller).
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace moesaic {

// ---- RMSNorm: y = x * r * w,  r = 1 / sqrt(mean(x^2) + epsilon), a row ------------------------------

// x, y compute [n, d]; w fp32 [d]; inverse_rms fp32 [n] (out; may be undefined: not kept).
void RmsNorm(const at::Tensor& x, const at::Tensor& w, double epsilon, at::Tensor& y,
             at::Tensor inverse_rms);
// dx = (gradient of the above), plus `residual` [n, d] where it is defined.
void RmsNormBackwardInput(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w,
                          const at::Tensor& inverse_rms, const at::Tensor& residual, at::Tensor& dx);
// dw fp32 [d], overwritten or added to.
void RmsNormBackwardWeight(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& inverse_rms,
                           bool accumulate, at::Tensor& dw);

// ---- Attention: causal, grouped-query, rotary positions (rotate-half, as in Hugging Face) ----------

struct AttentionShape {
  int64_t sequences = 0;
  int64_t length = 0;      // tokens a sequence
  int64_t heads = 0;
  int64_t kv_heads = 0;    // divides heads
  int64_t head_width = 0;  // even
};

// fp32 [positions, head_width / 2] each: cos and sin of position * base^(-2 i / head_width).
struct RopeTable {
  at::Tensor cos;
  at::Tensor sin;
};
RopeTable MakeRopeTable(int64_t positions, int64_t head_width, double base);

// Rotates the q and k parts of qkv compute [sequences * length, (heads + 2 kv_heads) * head_width] in
// place; the token at index t of a sequence has position first_position + t. `inverse` rotates back
// (the backward).
void ApplyRope(const AttentionShape& shape, const RopeTable& table, int64_t first_position,
               bool inverse, at::Tensor& qkv);

// RMSNorm of each head's query and key, with one gain for all query heads and one for all key heads,
// before the rotation (Qwen3).
struct HeadGains {
  at::Tensor q;  // fp32 [head_width]
  at::Tensor k;
  double epsilon = 0;
};
// What the backward needs of the forward.
struct HeadNormSaved {
  at::Tensor raw;          // compute [sequences * length, (heads + kv_heads) * head_width]: q, k
  at::Tensor inverse_rms;  // fp32 [sequences * length, heads + kv_heads]
};
// ApplyRope after these norms, in one pass and with one rounding. `saved`: allocated here; null: not
// kept.
void NormAndRotate(const AttentionShape& shape, const HeadGains& gains, const RopeTable& table,
                   int64_t first_position, at::Tensor& qkv, HeadNormSaved* saved);
// The gradient, of positions from 0: dqkv in place, dgain fp32 [2, head_width] (q, k) overwritten. The
// sums of dgain are the same at any number of threads.
void NormAndRotateBackward(const AttentionShape& shape, const HeadGains& gains,
                           const RopeTable& table, const HeadNormSaved& saved, at::Tensor& dqkv,
                           at::Tensor& dgain);

// out compute [sequences * length, heads * head_width] = softmax(q k^T / sqrt(head_width)) v over
// keys j with document_starts[i] <= j <= i of the same sequence; document_starts int32
// [sequences * length], or undefined: 0. log_sum_exp fp32 [sequences, heads, length] (out; may be
// undefined when there is no backward).
void Attention(const AttentionShape& shape, const at::Tensor& qkv,
               const at::Tensor& document_starts, at::Tensor& out, at::Tensor log_sum_exp);
// dqkv like qkv, overwritten.
void AttentionBackward(const AttentionShape& shape, const at::Tensor& dout, const at::Tensor& qkv,
                       const at::Tensor& document_starts, const at::Tensor& out,
                       const at::Tensor& log_sum_exp, at::Tensor& dqkv);

// For generation. shape.length new tokens a sequence; their (rotated) k and v are first written to
// k_cache and v_cache compute [sequences, capacity, kv_heads, head_width] at [past, past + length);
// then new token i attends to cache positions 0..past + i.
void AttentionWithCache(const AttentionShape& shape, const at::Tensor& qkv, int64_t past,
                        at::Tensor& k_cache, at::Tensor& v_cache, at::Tensor& out);

// ---- SwiGLU: a = silu(g) * u ----------------------------------------------------------------------------

// gate_up compute [n, 2 w] (g first), activation compute [n, w].
void SwiGlu(const at::Tensor& gate_up, at::Tensor& activation);
void SwiGluBackward(const at::Tensor& dactivation, const at::Tensor& gate_up, at::Tensor& dgate_up);

// ---- Rows: permute and combine ----------------------------------------------------------------------------

// out[i] = x[index[i]]; x compute [n, d], index int64 [m], out [m, d].
void GatherRows(const at::Tensor& x, const at::Tensor& index, at::Tensor& out);
// out[t] = (add[t] where defined) + sum_k weights[t, k] * rows[position[t, k]], k ascending, skipping
// position -1. rows compute [m, d], position int64 [n, K], weights fp32 [n, K] (undefined: all 1),
// add and out compute [n, d].
void CombineRows(const at::Tensor& rows, const at::Tensor& position, const at::Tensor& weights,
                 const at::Tensor& add, at::Tensor& out);
// drows[position[t, k]] = weights[t, k] * dout[t]; dweights[t, k] = <dout[t], rows[position[t, k]]>
// (0 where the position is -1). Each row is named by exactly one (t, k).
void CombineRowsBackward(const at::Tensor& dout, const at::Tensor& rows, const at::Tensor& position,
                         const at::Tensor& weights, at::Tensor& drows, at::Tensor& dweights);

// ---- Embedding and loss --------------------------------------------------------------------------------------

// out[i] = table[tokens[i]]; table compute [v, d], tokens int64 [n].
void EmbeddingLookup(const at::Tensor& table, const at::Tensor& tokens, at::Tensor& out);
// gradient fp32 [v, d] += rows of dy, in token order (zeroed first unless `accumulate`).
void EmbeddingBackward(const at::Tensor& dy, const at::Tensor& tokens, bool accumulate,
                       at::Tensor& gradient);

// Softmax cross-entropy of logits fp32 [n, v] with targets int64 [n] (-1: none), in place: logits
// become scale * d(sum of losses)/d(logits), rows without a target become 0. Returns the sum of the
// losses (added in row order, double).
double CrossEntropyInPlace(at::Tensor& logits, const at::Tensor& targets, double scale);
// The sum alone; logits stay.
double CrossEntropy(const at::Tensor& logits, const at::Tensor& targets);

}  // namespace moesaic
