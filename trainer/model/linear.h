// A plain linear layer as one group of a grouped linear product, and a feed-forward of two of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "trainer/model/block.h"

namespace moesaic {

// x [n, in], weight [out, in] -> x W^T [n, out], of the operands' type.
at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight);
// The same in fp32, not rounded to the operands' type.
at::Tensor LinearToFloat(const at::Tensor& x, const at::Tensor& weight);
// dy [n, out] -> dy W [n, in].
at::Tensor LinearBackwardInput(const at::Tensor& dy, const at::Tensor& weight);
// Reports the leaf (id, use, micro-batch) dy^T x.
void ReportLinear(const at::Tensor& dy, const at::Tensor& x, ParameterId id, int use,
                  int64_t micro_batch, GradientSink& sink);

// down(silu(gate x) * (up x)) of weights that are on every rank.
class SwiGluLayer {
 public:
  SwiGluLayer(ParameterId gate_up, ParameterId down) : gate_up_(gate_up), down_(down) {}

  struct Saved {
    at::Tensor x;           // [n, hidden]
    at::Tensor gate_up;     // [n, 2 width]
    at::Tensor activation;  // [n, width]
    at::Tensor dy;          // from BackwardInput on
    at::Tensor dgate_up;
  };

  std::vector<ParameterId> parameters() const { return {gate_up_, down_}; }
  at::Tensor Forward(const at::Tensor& x, WeightSource& weights, Saved& saved) const;
  at::Tensor BackwardInput(const at::Tensor& dy, WeightSource& weights, Saved& saved) const;
  void BackwardWeight(const Saved& saved, int64_t micro_batch, GradientSink& sink) const;

 private:
  ParameterId gate_up_;
  ParameterId down_;
};

}  // namespace moesaic
