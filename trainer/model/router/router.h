// Router: logits -> Routing, by orthogonal parts: score, select, capacity, weight, balance. All
// fp32, over one logical micro-batch, whatever precision and layout the model runs in. Gradient
// flows through the weights and the auxiliary losses; what was selected, counted and drawn is a
// constant.
//
// With a dense-to-sparse gate, in training and in that phase: g, the gate's probabilities (gate.h),
// select every expert above the threshold; g or softmax(z) weigh, and in the balance loss each
// expert that a token takes counts whole (K = 1), so that the loss is E times its coefficient, and
// without gradient, while all are taken, and Switch's when one is.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "proto/job.pb.h"
#include "trainer/model/router/balance.h"
#include "trainer/model/router/routing.h"
#include "trainer/model/router/score.h"
#include "trainer/model/router/select.h"
#include "trainer/recipe/schedule.h"

namespace moesaic {

// What a router looks at, of one logical micro-batch of n tokens.
struct RouteInputs {
  at::Tensor logits;      // fp32 [n, experts + null experts], contiguous
  int64_t sequences = 1;  // of equal length, one after the other; divides n
  // Of the first sequence, in the order of the training data: what is drawn for a sequence depends
  // on it and the seed alone.
  int64_t first_sample = 0;
  uint64_t step = 0;      // 0-based: schedules depend on it alone
  bool training = true;   // else nothing is dropped, drawn or kept from being chosen
  at::Tensor bias = {};   // fp32 [experts], for the selection only; undefined: none
  at::Tensor load = {};   // BalanceInputs::load
  int64_t skip_best = 0;  // Ablation's, as the next
  int64_t most = 0;       // a token chooses at most; 0: RouterConfig::active
};

struct RouterConfig {
  RouterSpec rule;        // resolved and valid
  int64_t experts = 0;    // of the layer's pool
  int64_t nulls = 0;      // null experts, which are chosen like others and compute nothing
  int64_t active = 0;     // at most `experts` and `nulls` together
  uint64_t seed = 0;      // of the job
  int layer = 0;          // of the model
  // The layer's own experts in the pool.
  int64_t own_begin = 0;
  int64_t own = 0;        // 0: all
  RecipeSchedule schedule = {};  // of the recipe that `rule` is of
};

// Immutable; thread-safe.
class Router {
 public:
  explicit Router(const RouterConfig& config);

  int64_t experts() const { return config_.experts; }
  // What a token chooses from: the experts and the null ones.
  int64_t choices() const { return config_.experts + config_.nulls; }
  int64_t active() const { return config_.active; }

  Routing Route(const RouteInputs& inputs) const;

  // By expert, of the layer's pool: for the loss over a pool (balance.h).
  std::vector<double> ProbabilitySums(const RouteInputs& inputs, const Routing& routing) const;
  // beta of that loss; 0: there is none.
  double pool_coefficient() const { return config_.rule.balance().pool_coefficient(); }

  // The gradient of (a loss with gradient `dweight` fp32 [n, K] at Routing::weight) + aux_scale *
  // aux_loss at the logits: fp32, of their shape. dweight of a dropped pair must be 0. `inputs` as
  // they were for Route. `pool_prices`: BalanceInputs::pool_prices.
  at::Tensor Backward(const RouteInputs& inputs, const Routing& routing, const at::Tensor& dweight,
                      double aux_scale, std::span<const double> pool_prices = {}) const;

 private:
  // Whether tokens take the experts that are above a threshold.
  bool OpensGate(const RouteInputs& inputs) const;
  // Scores and what they select.
  void Choose(const RouteInputs& inputs, Routing& routing) const;
  void ChooseByGate(const RouteInputs& inputs, Routing& routing) const;
  // bool [experts]; undefined: all.
  at::Tensor Candidates(const RouteInputs& inputs) const;
  at::Tensor Select(const RouteInputs& inputs, const Routing& routing) const;
  void TakeNulls(Routing& routing) const;
  // Returns how many pairs of `routing.expert` it dropped.
  int64_t Drop(const RouteInputs& inputs, Routing& routing) const;
  BalanceInputs BalanceOf(const RouteInputs& inputs, const Routing& routing) const;

  RouterConfig config_;
  const ScoreKind& score_;
  GroupRule groups_;
};

}  // namespace moesaic
