// Router: logits -> Routing, by orthogonal parts: score, select, capacity, weight, balance. All fp32,
// over one logical micro-batch, whatever precision and layout the model runs in. Gradient flows
// through the weights and the auxiliary losses; what was selected and counted is a constant.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "proto/job.pb.h"
#include "trainer/model/router/balance.h"
#include "trainer/model/router/routing.h"
#include "trainer/model/router/score.h"
#include "trainer/model/router/select.h"

namespace moesaic {

// What a router looks at, of one logical micro-batch of n tokens.
struct RouteInputs {
  at::Tensor logits;      // fp32 [n, experts], contiguous
  int64_t sequences = 1;  // of equal length, one after the other; divides n
  // Of the first sequence, in the order of the training data: what is drawn for a sequence depends
  // on it and the seed alone.
  int64_t first_sample = 0;
  bool dropless = false;  // the capacity limit does not apply
  at::Tensor bias = {};   // fp32 [experts], for the selection only; undefined: none
  at::Tensor load = {};   // BalanceInputs::load
};

// Immutable; thread-safe.
class Router {
 public:
  // `rule` is resolved and valid; active <= experts. `seed` is the job's.
  Router(const RouterSpec& rule, int64_t experts, int64_t active, uint64_t seed);

  int64_t experts() const { return experts_; }
  int64_t active() const { return active_; }

  Routing Route(const RouteInputs& inputs) const;

  // The gradient of (a loss with gradient `dweight` fp32 [n, K] at Routing::weight) + aux_scale *
  // aux_loss at the logits: fp32 [n, experts]. dweight of a dropped pair must be 0. `inputs` as they
  // were for Route.
  at::Tensor Backward(const RouteInputs& inputs, const Routing& routing, const at::Tensor& dweight,
                      double aux_scale) const;

 private:
  at::Tensor Select(const at::Tensor& scores, const at::Tensor& bias) const;
  // Returns how many pairs of `routing.expert` it dropped.
  int64_t Drop(const RouteInputs& inputs, Routing& routing) const;
  BalanceInputs BalanceOf(const RouteInputs& inputs, const Routing& routing) const;

  RouterSpec rule_;
  const ScoreKind& score_;
  int64_t experts_;
  int64_t active_;
  uint64_t seed_;
  GroupRule groups_;
};

}  // namespace moesaic
