// RouterLogits: a token's hidden state -> the logits of its layer's experts. Linear, z = W x, or
// recurrent over the depth of the model (RMoE: Qiu et al., "Layerwise Recurrent Router for
// Mixture-of-Experts", arXiv 2408.06793, section 3):
//   u_i = P_i x_i,   h_i = GRU(u_i, h_{i-1}),   z_i = W_i h_i,   h_0 = 0
// P_i and W_i are the layer's own, the cell is one for all layers. All fp32.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "proto/job.pb.h"
#include "trainer/model/block.h"
#include "trainer/model/router/gru_cell.h"

namespace moesaic {

struct RecurrentLogits {
  ParameterId projection = kNoParameter;  // P: [p, hidden]
  GruParameters cell;
  StateMode mode = CARRY;
  int use = 0;  // of the cell: which of the layers with experts, from 0
};

struct RouterLogitsConfig {
  ParameterId weight = kNoParameter;  // W: [experts, hidden], or [experts, p]
  std::optional<RecurrentLogits> recurrent;
};

// Immutable; thread-safe.
class RouterLogits {
 public:
  explicit RouterLogits(const RouterLogitsConfig& config) : config_(config) {}

  struct Saved {
    at::Tensor x;  // fp32 [n, hidden]
    GruCell::Saved cell;
    at::Tensor h;  // what W multiplies: x, or h_i
    at::Tensor dlogits;  // from BackwardInput on
    at::Tensor du;
  };

  std::vector<ParameterId> parameters() const;

  struct Output {
    at::Tensor logits;  // fp32 [n, experts]
    at::Tensor state;   // h_i for the next layer; `state` as it came for a linear router
  };
  // x [n, hidden] of any type; state [n, p] fp32, or undefined: zeros.
  Output Forward(const at::Tensor& x, const at::Tensor& state, WeightSource& weights,
                 Saved& saved) const;

  struct InputGradients {
    at::Tensor dx;      // fp32 [n, hidden]
    at::Tensor dstate;  // at the state that came; undefined: zeros
  };
  // dstate: at the state that went out; undefined: zeros.
  InputGradients BackwardInput(const at::Tensor& dlogits, const at::Tensor& dstate,
                               WeightSource& weights, Saved& saved) const;
  void BackwardWeight(const Saved& saved, int64_t micro_batch, GradientSink& sink) const;

 private:
  RouterLogitsConfig config_;
};

}  // namespace moesaic
