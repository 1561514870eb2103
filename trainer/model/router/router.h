// Router: logits -> Routing, by four orthogonal parts: score, select, weight, balance. All fp32,
// over one logical micro-batch, whatever precision and layout the model runs in. Gradient flows
// through the weights and the auxiliary losses; what was selected and counted is a constant.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "proto/job.pb.h"
#include "trainer/model/router/routing.h"
#include "trainer/model/router/score.h"

namespace moesaic {

// Immutable; thread-safe.
class Router {
 public:
  // `rule` is resolved; active <= experts.
  Router(const RouterSpec& rule, int64_t experts, int64_t active);

  int64_t experts() const { return experts_; }
  int64_t active() const { return active_; }

  // logits fp32 [n, experts]. `dropless`: the capacity limit does not apply.
  Routing Route(const at::Tensor& logits, bool dropless) const;

  // The gradient of (a loss with gradient `dweight` fp32 [n, K] at Routing::weight) + aux_scale *
  // aux_loss at the logits: fp32 [n, experts]. dweight of a dropped pair must be 0.
  at::Tensor Backward(const Routing& routing, const at::Tensor& dweight, double aux_scale) const;

 private:
  RouterSpec rule_;
  const ScoreKind& score_;
  int64_t experts_;
  int64_t active_;
};

}  // namespace moesaic
