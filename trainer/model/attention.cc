#include "trainer/model/attention.h"

#include <ATen/ATen.h>

#include "trainer/model/linear.h"

namespace moesaic {
namespace {

struct AttentionSaved : SavedForBackward {
  NormLayer::Saved norm;
  at::Tensor normed;       // [n, hidden]
  at::Tensor qkv;          // rotated
  HeadNormSaved head_norm;
  at::Tensor attended;     // [n, heads * head_width]
  at::Tensor log_sum_exp;  // fp32 [sequences, heads, length]
  at::Tensor dout;         // from BackwardInput on
  at::Tensor dqkv;
  at::Tensor dgain;  // of the head norms
};

void ReportGain(const at::Tensor& dgain, ParameterId id, int64_t micro_batch, GradientSink& sink) {
  GradientSink::Slot slot = sink.Open(id, 0, micro_batch);
  if (slot.accumulate) {
    slot.gradient.add_(dgain);
  } else {
    slot.gradient.copy_(dgain);
  }
  sink.Close(id, 0, micro_batch);
}

}  // namespace

AttentionBlock::AttentionBlock(AttentionConfig config)
    : config_(std::move(config)), norm_(config_.norm, config_.norm_epsilon) {}

std::vector<ParameterId> AttentionBlock::parameters() const {
  if (!has_head_norms()) return {config_.norm, config_.qkv, config_.output};
  return {config_.norm, config_.qkv, config_.q_norm, config_.k_norm, config_.output};
}

HeadGains AttentionBlock::Gains(WeightSource& weights) const {
  return {weights.Lease(config_.q_norm), weights.Lease(config_.k_norm), config_.norm_epsilon};
}

void AttentionBlock::Rotate(const AttentionShape& shape, WeightSource& weights,
                            int64_t first_position, at::Tensor& qkv, HeadNormSaved* saved) const {
  if (has_head_norms()) {
    NormAndRotate(shape, Gains(weights), *config_.rope, first_position, qkv, saved);
  } else {
    ApplyRope(shape, *config_.rope, first_position, false, qkv);
  }
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
  Rotate(shape, weights, 0, saved->qkv, context.options->training ? &saved->head_norm : nullptr);
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
  if (has_head_norms()) {
    saved.dgain = at::empty({2, shape.head_width}, at::kFloat);
    NormAndRotateBackward(shape, Gains(weights), *config_.rope, saved.head_norm, dqkv, saved.dgain);
    saved.head_norm = {};
  } else {
    ApplyRope(shape, *config_.rope, 0, true, dqkv);
  }
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
  if (has_head_norms()) {
    ReportGain(saved.dgain[0], config_.q_norm, micro_batch, sink);
    ReportGain(saved.dgain[1], config_.k_norm, micro_batch, sink);
  }
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
  Rotate(shape, *context.weights, past, qkv, nullptr);
  at::Tensor attended = at::empty({x.size(0), shape.heads * shape.head_width}, x.options());
  AttentionWithCache(shape, qkv, past, cache.keys, cache.values, attended);
  Bundle out = in;
  out.hidden = Linear(attended, context.weights->Lease(config_.output)).add_(x);
  return out;
}

}  // namespace moesaic
