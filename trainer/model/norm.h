// The RMSNorm that stands before attention, feed-forward and head.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "trainer/model/block.h"

namespace moesaic {

class NormLayer {
 public:
  NormLayer(ParameterId weight, double epsilon) : weight_(weight), epsilon_(epsilon) {}

  struct Saved {
    at::Tensor x;            // [n, hidden]
    at::Tensor inverse_rms;  // fp32 [n]
    at::Tensor dy;           // from BackwardInput on
  };

  ParameterId parameter() const { return weight_; }
  at::Tensor Forward(const at::Tensor& x, WeightSource& weights, Saved& saved) const;
  // dx, plus `residual` where it is defined.
  at::Tensor BackwardInput(const at::Tensor& dy, const at::Tensor& residual, WeightSource& weights,
                           Saved& saved) const;
  void BackwardWeight(const Saved& saved, int64_t micro_batch, GradientSink& sink) const;

 private:
  ParameterId weight_;
  double epsilon_;
};

}  // namespace moesaic
