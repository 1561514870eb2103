// GruCell: one step of a gated recurrent unit for every row, forward and backward, fp32:
//   r = sigmoid(W_ir u + b_ir + W_hr h + b_hr)     reset
//   z = sigmoid(W_iz u + b_iz + W_hz h + b_hz)     update
//   n = tanh(W_in u + b_in + r * (W_hn h + b_hn))  candidate
//   h' = (1 - z) * n + z * h
// (Cho et al., 2014, in the form of torch.nn.GRUCell, whose weights these are.) Rows are tokens: the
// recurrence is over the depth of the model, never over the sequence.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trainer/model/block.h"

namespace moesaic {

struct GruParameters {
  ParameterId input_weight = kNoParameter;   // [3 p, p], rows: reset, update, candidate
  ParameterId hidden_weight = kNoParameter;  // [3 p, p]
  ParameterId input_bias = kNoParameter;     // [3 p]
  ParameterId hidden_bias = kNoParameter;    // [3 p]
};

// Immutable; thread-safe.
class GruCell {
 public:
  explicit GruCell(const GruParameters& parameters) : parameters_(parameters) {}

  struct Saved {
    at::Tensor u;       // [n, p]
    at::Tensor h;       // [n, p], before the step; undefined: zeros
    at::Tensor gates;   // [n, 4 p]: r, z, n, and W_hn h + b_hn
    at::Tensor dinput;  // [n, 3 p]: gradient at W_i u + b_i; from BackwardInput on
    at::Tensor dhidden; // [n, 3 p]: at W_h h + b_h
  };

  std::vector<ParameterId> parameters() const;

  // u, h [n, p] -> h' [n, p]. An undefined h is zeros, and saves the products with them.
  at::Tensor Forward(const at::Tensor& u, const at::Tensor& h, WeightSource& weights,
                     Saved& saved) const;

  struct InputGradients {
    at::Tensor du;  // [n, p]
    at::Tensor dh;  // [n, p]; undefined where h was
  };
  InputGradients BackwardInput(const at::Tensor& dout, WeightSource& weights, Saved& saved) const;
  // Reports the leaf `use` of each parameter.
  void BackwardWeight(const Saved& saved, int use, int64_t micro_batch, GradientSink& sink) const;

 private:
  GruParameters parameters_;
};

}  // namespace moesaic
