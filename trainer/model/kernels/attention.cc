#include <cmath>

#include "trainer/model/kernels/dispatch.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

int64_t QkvWidth(const AttentionShape& shape) {
  return (shape.heads + 2 * shape.kv_heads) * shape.head_width;
}

void CheckShape(const AttentionShape& shape) {
  TORCH_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0,
              "attention: kv_heads (", shape.kv_heads, ") must divide heads (", shape.heads, ")");
  TORCH_CHECK(shape.head_width > 0 && shape.head_width % 2 == 0,
              "attention: head_width must be even, got ", shape.head_width);
}

// The heads of one sequence as fp32 [heads, length, head_width]; k and v repeated for their group.
struct Heads {
  at::Tensor q, k, v;
};

Heads SplitHeads(const AttentionShape& shape, const at::Tensor& qkv, int64_t sequence) {
  const int64_t group = shape.heads / shape.kv_heads;
  at::Tensor rows = qkv.narrow(0, sequence * shape.length, shape.length)
                        .view({shape.length, shape.heads + 2 * shape.kv_heads, shape.head_width})
                        .to(at::kFloat)
                        .transpose(0, 1);
  return {rows.narrow(0, 0, shape.heads),
          rows.narrow(0, shape.heads, shape.kv_heads).repeat_interleave(group, 0),
          rows.narrow(0, shape.heads + shape.kv_heads, shape.kv_heads).repeat_interleave(group, 0)};
}

// bool [length, length]: whether key j is hidden from query i.
at::Tensor Hidden(const AttentionShape& shape, const at::Tensor& document_starts, int64_t sequence) {
  at::Tensor index = at::arange(shape.length);
  at::Tensor hidden = index.unsqueeze(0) > index.unsqueeze(1);
  if (!document_starts.defined()) return hidden;
  at::Tensor starts = document_starts.narrow(0, sequence * shape.length, shape.length);
  return hidden.logical_or(index.unsqueeze(0) < starts.unsqueeze(1));
}

at::Tensor Scores(const AttentionShape& shape, const Heads& heads, const at::Tensor& hidden) {
  at::Tensor scores = at::matmul(heads.q, heads.k.transpose(1, 2));
  scores.mul_(1.0 / std::sqrt(static_cast<double>(shape.head_width)));
  return scores.masked_fill_(hidden, -INFINITY);
}

}  // namespace

void Attention(const AttentionShape& shape, const at::Tensor& qkv,
               const at::Tensor& document_starts, at::Tensor& out, at::Tensor log_sum_exp) {
  CheckShape(shape);
  const int64_t n = shape.sequences * shape.length;
  CheckTensor("Attention: qkv", qkv, {n, QkvWidth(shape)}, qkv.scalar_type());
  CheckOptional("Attention: document_starts", document_starts, {n}, at::kInt);
  CheckTensor("Attention: out", out, {n, shape.heads * shape.head_width}, qkv.scalar_type());
  CheckOptional("Attention: log_sum_exp", log_sum_exp, {shape.sequences, shape.heads, shape.length},
                at::kFloat);
  for (int64_t s = 0; s < shape.sequences; ++s) {
    Heads heads = SplitHeads(shape, qkv, s);
    at::Tensor scores = Scores(shape, heads, Hidden(shape, document_starts, s));
    at::Tensor lse = scores.logsumexp(-1);
    if (log_sum_exp.defined()) log_sum_exp[s].copy_(lse);
    at::Tensor o = at::matmul((scores - lse.unsqueeze(-1)).exp_(), heads.v);
    out.narrow(0, s * shape.length, shape.length)
        .view({shape.length, shape.heads, shape.head_width})
        .copy_(o.transpose(0, 1));
  }
}

void AttentionBackward(const AttentionShape& shape, const at::Tensor& dout, const at::Tensor& qkv,
                       const at::Tensor& document_starts, const at::Tensor& out,
                       const at::Tensor& log_sum_exp, at::Tensor& dqkv) {
  CheckShape(shape);
  const int64_t n = shape.sequences * shape.length;
  CheckTensor("AttentionBackward: qkv", qkv, {n, QkvWidth(shape)}, qkv.scalar_type());
  CheckTensor("AttentionBackward: dqkv", dqkv, {n, QkvWidth(shape)}, qkv.scalar_type());
  CheckTensor("AttentionBackward: out", out, {n, shape.heads * shape.head_width}, qkv.scalar_type());
  CheckTensor("AttentionBackward: dout", dout, out.sizes(), qkv.scalar_type());
  const int64_t group = shape.heads / shape.kv_heads;
  const double scale = 1.0 / std::sqrt(static_cast<double>(shape.head_width));
  for (int64_t s = 0; s < shape.sequences; ++s) {
    Heads heads = SplitHeads(shape, qkv, s);
    auto rows_of = [&](const at::Tensor& t) {
      return t.narrow(0, s * shape.length, shape.length)
          .view({shape.length, shape.heads, shape.head_width})
          .to(at::kFloat)
          .transpose(0, 1);
    };
    at::Tensor d = rows_of(dout);
    at::Tensor p = (Scores(shape, heads, Hidden(shape, document_starts, s)) -
                    log_sum_exp[s].unsqueeze(-1)).exp_();
    at::Tensor delta = (d * rows_of(out)).sum(-1, true);
    at::Tensor ds = p * (at::matmul(d, heads.v.transpose(1, 2)) - delta) * scale;
    auto fold = [&](const at::Tensor& t) {
      return t.view({shape.kv_heads, group, shape.length, shape.head_width}).sum(1);
    };
    at::Tensor dq = at::matmul(ds, heads.k);
    at::Tensor dk = fold(at::matmul(ds.transpose(1, 2), heads.q));
    at::Tensor dv = fold(at::matmul(p.transpose(1, 2), d));
    dqkv.narrow(0, s * shape.length, shape.length)
        .view({shape.length, shape.heads + 2 * shape.kv_heads, shape.head_width})
        .copy_(at::cat({dq, dk, dv}, 0).transpose(0, 1));
  }
}

}  // namespace moesaic
