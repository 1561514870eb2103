#include "trainer/model/attention.h"

#include <ATen/ATen.h>

#include "trainer/model/linear.h"

namespace moesaic {
namespace {

struct AttentionSaved : SavedForBackward {
  NormLayer::Saved norm;
  at::Tensor normed;       // [n, hidden]
  at::Tensor qkv;          // rotated
  at::Tensor attended;     // [n, heads * head_width]
  at::Tensor log_sum_exp;  // fp32 [sequences, heads, length]
  at::Tensor dout;         // from BackwardInput on
  at::Tensor dqkv;
};

}  // namespace

AttentionBlock::AttentionBlock(AttentionConfig config)
    : config_(std::move(config)), norm_(config_.norm, config_.norm_epsilon) {}

std::vector<ParameterId> AttentionBlock::parameters() const {
  return {config_.norm, config_.qkv, config_.output};
}

AttentionShape AttentionBlock::Shape(const MicroBatch& batch) const {
  return {batch.sequences, batch.length, config_.heads, config_.kv_heads, config_.head_width};
}

Bundle AttentionBlock::Forward(const Bundle& in, PassContext& context) {
  const at::Tensor& x = in.hidden;
  if (x.size(0) == 0) return in;
  const AttentionShape shape = Shape(*context.micro_batch);
  WeightSource& weights = *context.weights;
  auto saved = std::make_unique<AttentionSaved>();
  ProfiledScope scope(context.options->profile, Part::kNorm);
  saved->normed = norm_.Forward(x, weights, saved->norm);
  scope.Switch(Part::kAttention);
  saved->qkv = Linear(saved->normed, weights.Lease(config_.qkv));
  ApplyRope(shape, *config_.rope, 0, false, saved->qkv);
  saved->attended = at::empty({x.size(0), shape.heads * shape.head_width}, x.options());
  if (context.options->training) {
    saved->log_sum_exp = at::empty({shape.sequences, shape.heads, shape.length}, at::kFloat);
  }
  Attention(shape, saved->qkv, context.micro_batch->document_starts, saved->attended,
            saved->log_sum_exp);
  Bundle out = in;
  out.hidden = Linear(saved->attended, weights.Lease(config_.output)).add_(x);
  if (context.options->training) context.saved = std::move(saved);
  return out;
}

Bundle AttentionBlock::BackwardInput(const Bundle& grad_out, PassContext& context) {
  const at::Tensor& dout = grad_out.hidden;
  if (dout.size(0) == 0) return grad_out;
  const AttentionShape shape = Shape(*context.micro_batch);
  WeightSource& weights = *context.weights;
  auto& saved = static_cast<AttentionSaved&>(*context.saved);
  ProfiledScope scope(context.options->profile, Part::kAttention);
  const at::Tensor dattended = LinearBackwardInput(dout, weights.Lease(config_.output));
  at::Tensor dqkv = at::empty_like(saved.qkv);
  AttentionBackward(shape, dattended, saved.qkv, context.micro_batch->document_starts,
                    saved.attended, saved.log_sum_exp, dqkv);
  ApplyRope(shape, *config_.rope, 0, true, dqkv);
  const at::Tensor dnormed = LinearBackwardInput(dqkv, weights.Lease(config_.qkv));
  saved.qkv = at::Tensor();
  saved.dout = dout;
  saved.dqkv = dqkv;
  Bundle grad_in = grad_out;
  scope.Switch(Part::kNorm);
  grad_in.hidden = norm_.BackwardInput(dnormed, dout, weights, saved.norm);
  return grad_in;
}

void AttentionBlock::BackwardWeight(PassContext& context, GradientSink& sink) {
  const int64_t micro_batch = context.micro_batch->id;
  if (context.micro_batch->sequences == 0) return;
  const auto& saved = static_cast<const AttentionSaved&>(*context.saved);
  ProfiledScope scope(context.options->profile, Part::kAttention);
  ReportLinear(saved.dout, saved.attended, config_.output, 0, micro_batch, sink);
  ReportLinear(saved.dqkv, saved.normed, config_.qkv, 0, micro_batch, sink);
  scope.Switch(Part::kNorm);
  norm_.BackwardWeight(saved.norm, micro_batch, sink);
}

Bundle AttentionBlock::ForwardWithCache(const Bundle& in, PassContext& context, int64_t past,
                                        LayerCache& cache) const {
  const at::Tensor& x = in.hidden;
  const AttentionShape shape = Shape(*context.micro_batch);
  NormLayer::Saved unused;
  const at::Tensor normed = norm_.Forward(x, *context.weights, unused);
  at::Tensor qkv = Linear(normed, context.weights->Lease(config_.qkv));
  ApplyRope(shape, *config_.rope, past, false, qkv);
  at::Tensor attended = at::empty({x.size(0), shape.heads * shape.head_width}, x.options());
  AttentionWithCache(shape, qkv, past, cache.keys, cache.values, attended);
  Bundle out = in;
  out.hidden = Linear(attended, context.weights->Lease(config_.output)).add_(x);
  return out;
}

}  // namespace moesaic
