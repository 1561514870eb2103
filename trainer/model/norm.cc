#include "trainer/model/norm.h"

#include <ATen/ATen.h>

#include "trainer/model/kernels/kernels.h"

namespace moesaic {

at::Tensor NormLayer::Forward(const at::Tensor& x, WeightSource& weights, Saved& saved) const {
  at::Tensor y = at::empty_like(x);
  saved.x = x;
  saved.inverse_rms = at::empty({x.size(0)}, at::kFloat);
  RmsNorm(x, weights.Lease(weight_), epsilon_, y, saved.inverse_rms);
  return y;
}

at::Tensor NormLayer::BackwardInput(const at::Tensor& dy, const at::Tensor& residual,
                                    WeightSource& weights, Saved& saved) const {
  saved.dy = dy;
  at::Tensor dx = at::empty_like(dy);
  RmsNormBackwardInput(dy, saved.x, weights.Lease(weight_), saved.inverse_rms, residual, dx);
  return dx;
}

void NormLayer::BackwardWeight(const Saved& saved, int64_t micro_batch, GradientSink& sink) const {
  GradientSink::Slot slot = sink.Open(weight_, 0, micro_batch);
  RmsNormBackwardWeight(saved.dy, saved.x, saved.inverse_rms, slot.accumulate, slot.gradient);
  sink.Close(weight_, 0, micro_batch);
}

}  // namespace moesaic
