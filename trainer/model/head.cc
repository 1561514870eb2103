#include "trainer/model/head.h"

#include <ATen/ATen.h>

#include "parallel/expert/grouped_linear.h"
#include "trainer/model/kernels/kernels.h"
#include "trainer/model/linear.h"

namespace moesaic {
namespace {

struct HeadSaved : SavedForBackward {
  NormLayer::Saved norm;
  at::Tensor dnormed;      // [n, hidden]
  at::Tensor dprojection;  // fp32 [vocabulary, hidden]
};

// Rows of a chunk: 8 Mi logits, but enough rows for the product to be worth its call. Depends on
// the vocabulary alone, so that bits do not depend on the layout.
int64_t ChunkRows(int64_t vocabulary) {
  return std::max<int64_t>(32, (int64_t{1} << 23) / vocabulary);
}

int64_t CountTargets(const at::Tensor& targets) {
  const int64_t* data = targets.const_data_ptr<int64_t>();
  return std::count_if(data, data + targets.numel(), [](int64_t t) { return t >= 0; });
}

// Takes the gradient of one chunk while its logits exist; returns its loss.
double LossAndGradient(const at::Tensor& normed, const at::Tensor& targets,
                       const at::Tensor& weight, double scale, at::Tensor dnormed,
                       const WeightGradient& dprojection) {
  at::Tensor logits = LinearToFloat(normed, weight);
  const double loss = CrossEntropyInPlace(logits, targets, scale);
  const at::Tensor dlogits = logits.to(normed.scalar_type());
  const LinearGroup group{0, normed.size(0), weight};
  GroupedLinearBackwardInput(dlogits, {&group, 1}, dnormed);
  GroupedLinearBackwardWeight(dlogits, normed, {&dprojection, 1});
  return loss;
}

}  // namespace

HeadBlock::HeadBlock(NormLayer norm, ParameterId projection, int use)
    : norm_(norm), projection_(projection), use_(use) {}

std::vector<ParameterId> HeadBlock::parameters() const { return {norm_.parameter(), projection_}; }

Bundle HeadBlock::Forward(const Bundle& in, PassContext& context) {
  const int64_t rows = in.hidden.size(0);
  const at::Tensor& targets = context.micro_batch->targets;
  auto saved = std::make_unique<HeadSaved>();
  const ProfiledScope scope(context.options->profile, Part::kLoss);
  const at::Tensor normed = norm_.Forward(in.hidden, *context.weights, saved->norm);
  const at::Tensor weight = context.weights->Lease(projection_);
  const bool training = context.options->training;
  if (training) {
    saved->dnormed = at::empty_like(normed);
    if (rows > 0) saved->dprojection = at::empty(weight.sizes(), at::kFloat);
  }
  const int64_t chunk = ChunkRows(weight.size(0));
  double loss = 0;
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const at::Tensor part = normed.narrow(0, begin, count);
    const at::Tensor wanted = targets.narrow(0, begin, count);
    loss += training ? LossAndGradient(part, wanted, weight, context.options->loss_scale,
                                       saved->dnormed.narrow(0, begin, count),
                                       {0, count, saved->dprojection, begin > 0})
                     : CrossEntropy(LinearToFloat(part, weight), wanted);
  }
  context.scalars->loss_sum += loss;
  if (rows > 0) context.scalars->targets += CountTargets(targets);
  if (training) context.saved = std::move(saved);
  return {};
}

Bundle HeadBlock::BackwardInput(const Bundle& /*grad_out*/, PassContext& context) {
  Bundle grad_in;
  const ProfiledScope scope(context.options->profile, Part::kLoss);
  auto& saved = static_cast<HeadSaved&>(*context.saved);
  grad_in.hidden = norm_.BackwardInput(saved.dnormed, {}, *context.weights, saved.norm);
  return grad_in;
}

void HeadBlock::BackwardWeight(PassContext& context, GradientSink& sink) {
  const MicroBatch& batch = *context.micro_batch;
  if (batch.sequences == 0) return;
  const ProfiledScope scope(context.options->profile, Part::kLoss);
  const auto& saved = static_cast<const HeadSaved&>(*context.saved);
  GradientSink::Slot slot = sink.Open(projection_, use_, batch.id);
  if (slot.accumulate) {
    slot.gradient.add_(saved.dprojection);
  } else {
    slot.gradient.copy_(saved.dprojection);
  }
  sink.Close(projection_, use_, batch.id);
  norm_.BackwardWeight(saved.norm, batch.id, sink);
}

at::Tensor HeadBlock::Logits(const at::Tensor& hidden, WeightSource& weights) const {
  NormLayer::Saved unused;
  const at::Tensor normed = norm_.Forward(hidden, weights, unused);
  return LinearToFloat(normed, weights.Lease(projection_));
}

}  // namespace moesaic
