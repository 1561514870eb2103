#include "trainer/loop/parameter_gradients.h"

#include <ATen/ATen.h>

#include "parallel/data/gradient_buckets.h"
#include "parallel/data/gradient_tree.h"
#include "parallel/data/weight_broadcast.h"

namespace moesaic {
namespace {

std::vector<HeldParameter> HeldParameters(const ParameterGradientsInputs& inputs) {
  std::vector<HeldParameter> parameters;
  for (const ParameterSpec& spec : inputs.catalog->parameters()) {
    // What is not learnt keeps its place, so that positions are ids.
    HeldParameter parameter;
    parameter.elements = spec.learnt ? spec.elements() : 0;
    parameter.uses = spec.learnt ? spec.uses : 0;
    if (spec.expert >= 0) {
      parameter.holders =
          inputs.mesh->DataOf(inputs.placement->holders(spec.layer, spec.expert));
    }
    parameters.push_back(std::move(parameter));
  }
  return parameters;
}

}  // namespace

ParameterGradients::ParameterGradients(const ParameterGradientsInputs& inputs)
    : catalog_(*inputs.catalog), data_(*inputs.data), parameters_(HeldParameters(inputs)) {
  reducer_ = inputs.reproducible ? MakeGradientTree(parameters_, inputs.data)
                                 : MakeGradientBuckets(parameters_, inputs.data);
}

GradientSink::Slot ParameterGradients::Open(ParameterId id, int use, int64_t micro_batch) {
  const GradientSlot slot = reducer_->Open(id, use, micro_batch);
  return {slot.gradient.view(catalog_[id].shape), slot.accumulate};
}

void ParameterGradients::Close(ParameterId id, int use, int64_t micro_batch) {
  reducer_->Close(id, use, micro_batch);
}

void ParameterGradients::Skip(ParameterId id, int use, int64_t micro_batch) {
  reducer_->Skip(id, use, micro_batch);
}

at::Tensor ParameterGradients::Reduced(ParameterId id) const {
  return reducer_->Gradient(id).view(catalog_[id].shape);
}

void ParameterGradients::ShareWeights(ParameterStore& store) const {
  BroadcastWeights(parameters_, data_, [&](int id) { return store.Lease(id); });
}

}  // namespace moesaic
