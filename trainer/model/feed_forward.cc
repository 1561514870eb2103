#include "trainer/model/feed_forward.h"

#include <ATen/ATen.h>

namespace moesaic {
namespace {

struct DenseSaved : SavedForBackward {
  NormLayer::Saved norm;
  std::vector<SwiGluLayer::Saved> parts;
};

struct MoeSaved : SavedForBackward {
  NormLayer::Saved norm;
  MoeLayer::Saved moe;
};

}  // namespace

DenseBlock::DenseBlock(std::string name, NormLayer norm, std::vector<SwiGluLayer> parts)
    : name_(std::move(name)), norm_(norm), parts_(std::move(parts)) {}

std::vector<ParameterId> DenseBlock::parameters() const {
  std::vector<ParameterId> ids = {norm_.parameter()};
  for (const SwiGluLayer& part : parts_) {
    for (const ParameterId id : part.parameters()) ids.push_back(id);
  }
  return ids;
}

Bundle DenseBlock::Forward(const Bundle& in, PassContext& context) {
  if (in.hidden.size(0) == 0) return in;
  auto saved = std::make_unique<DenseSaved>();
  ProfiledScope scope(context.options->profile, Part::kNorm);
  const at::Tensor normed = norm_.Forward(in.hidden, *context.weights, saved->norm);
  scope.Switch(Part::kExperts);
  saved->parts.resize(parts_.size());
  Bundle out = in;
  for (size_t i = 0; i < parts_.size(); ++i) {
    out.hidden = parts_[i].Forward(normed, *context.weights, saved->parts[i]).add_(out.hidden);
  }
  if (context.options->training) context.saved = std::move(saved);
  return out;
}

Bundle DenseBlock::BackwardInput(const Bundle& grad_out, PassContext& context) {
  const at::Tensor& dout = grad_out.hidden;
  if (dout.size(0) == 0) return grad_out;
  auto& saved = static_cast<DenseSaved&>(*context.saved);
  ProfiledScope scope(context.options->profile, Part::kExperts);
  at::Tensor dnormed = parts_[0].BackwardInput(dout, *context.weights, saved.parts[0]);
  for (size_t i = 1; i < parts_.size(); ++i) {
    dnormed.add_(parts_[i].BackwardInput(dout, *context.weights, saved.parts[i]));
  }
  scope.Switch(Part::kNorm);
  Bundle grad_in = grad_out;
  grad_in.hidden = norm_.BackwardInput(dnormed, dout, *context.weights, saved.norm);
  return grad_in;
}

void DenseBlock::BackwardWeight(PassContext& context, GradientSink& sink) {
  const MicroBatch& batch = *context.micro_batch;
  if (batch.sequences == 0) return;
  const auto& saved = static_cast<const DenseSaved&>(*context.saved);
  ProfiledScope scope(context.options->profile, Part::kExperts);
  for (size_t i = 0; i < parts_.size(); ++i) {
    parts_[i].BackwardWeight(saved.parts[i], batch.id, sink);
  }
  scope.Switch(Part::kNorm);
  norm_.BackwardWeight(saved.norm, batch.id, sink);
}

MoeBlock::MoeBlock(std::string name, NormLayer norm, MoeLayer moe)
    : name_(std::move(name)), norm_(norm), moe_(std::move(moe)) {}

std::vector<ParameterId> MoeBlock::parameters() const {
  std::vector<ParameterId> ids = moe_.parameters();
  ids.insert(ids.begin(), norm_.parameter());
  return ids;
}

at::Tensor MoeBlock::Normed(const at::Tensor& x, PassContext& context,
                            NormLayer::Saved& saved) const {
  const ProfiledScope scope(context.options->profile, Part::kNorm);
  return norm_.Forward(x, *context.weights, saved);
}

Bundle MoeBlock::Forward(const Bundle& in, PassContext& context) {
  auto saved = std::make_unique<MoeSaved>();
  const at::Tensor normed = Normed(in.hidden, context, saved->norm);
  Bundle out = moe_.Forward(normed, in, context, saved->moe);
  if (context.options->training) context.saved = std::move(saved);
  return out;
}

Bundle MoeBlock::BackwardInput(const Bundle& grad_out, PassContext& context) {
  auto& saved = static_cast<MoeSaved&>(*context.saved);
  Bundle grad_in = moe_.BackwardInput(grad_out, context, saved.moe);
  const ProfiledScope scope(context.options->profile, Part::kNorm);
  grad_in.hidden =
      norm_.BackwardInput(grad_in.hidden, grad_out.hidden, *context.weights, saved.norm);
  return grad_in;
}

void MoeBlock::BackwardWeight(PassContext& context, GradientSink& sink) {
  const auto& saved = static_cast<const MoeSaved&>(*context.saved);
  moe_.BackwardWeight(context, saved.moe, sink);
  if (context.micro_batch->sequences == 0) return;
  const ProfiledScope scope(context.options->profile, Part::kNorm);
  norm_.BackwardWeight(saved.norm, context.micro_batch->id, sink);
}

const Routing& MoeBlock::RoutingOf(const PassContext& context) {
  return static_cast<const MoeSaved&>(*context.saved).moe.routing;
}

}  // namespace moesaic
