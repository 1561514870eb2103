#include "trainer/model/linear.h"

#include <ATen/ATen.h>

#include "parallel/expert/grouped_linear.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

at::Tensor LinearTo(at::ScalarType type, const at::Tensor& x, const at::Tensor& weight) {
  at::Tensor y = at::empty({x.size(0), weight.size(0)}, type);
  const LinearGroup group{0, x.size(0), weight};
  GroupedLinear(x, {&group, 1}, y);
  return y;
}

}  // namespace

at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight) {
  return LinearTo(x.scalar_type(), x, weight);
}

at::Tensor LinearToFloat(const at::Tensor& x, const at::Tensor& weight) {
  return LinearTo(at::kFloat, x, weight);
}

at::Tensor LinearBackwardInput(const at::Tensor& dy, const at::Tensor& weight) {
  at::Tensor dx = at::empty({dy.size(0), weight.size(1)}, dy.options());
  const LinearGroup group{0, dy.size(0), weight};
  GroupedLinearBackwardInput(dy, {&group, 1}, dx);
  return dx;
}

void ReportLinear(const at::Tensor& dy, const at::Tensor& x, ParameterId id, int use,
                  int64_t micro_batch, GradientSink& sink) {
  const GradientSink::Slot slot = sink.Open(id, use, micro_batch);
  const WeightGradient group{0, dy.size(0), slot.gradient, slot.accumulate};
  GroupedLinearBackwardWeight(dy, x, {&group, 1});
  sink.Close(id, use, micro_batch);
}

at::Tensor SwiGluLayer::Forward(const at::Tensor& x, WeightSource& weights, Saved& saved) const {
  saved.x = x;
  saved.gate_up = Linear(x, weights.Lease(gate_up_));
  saved.activation = at::empty({x.size(0), saved.gate_up.size(1) / 2}, x.options());
  SwiGlu(saved.gate_up, saved.activation);
  return Linear(saved.activation, weights.Lease(down_));
}

at::Tensor SwiGluLayer::BackwardInput(const at::Tensor& dy, WeightSource& weights,
                                      Saved& saved) const {
  saved.dy = dy;
  const at::Tensor dactivation = LinearBackwardInput(dy, weights.Lease(down_));
  saved.dgate_up = at::empty_like(saved.gate_up);
  SwiGluBackward(dactivation, saved.gate_up, saved.dgate_up);
  return LinearBackwardInput(saved.dgate_up, weights.Lease(gate_up_));
}

void SwiGluLayer::BackwardWeight(const Saved& saved, int64_t micro_batch,
                                 GradientSink& sink) const {
  ReportLinear(saved.dy, saved.activation, down_, 0, micro_batch, sink);
  ReportLinear(saved.dgate_up, saved.x, gate_up_, 0, micro_batch, sink);
}

}  // namespace moesaic
