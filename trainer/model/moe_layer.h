// MoeLayer: route -> sort -> exchange -> experts -> exchange back -> combine, and its backward.
//
// Expert products take rows in the holder's order (DispatchPlan): one group an expert, or, in
// reproducible mode, one group a (expert, logical micro-batch) segment, so that the bits of a
// segment do not depend on which ranks and micro-batches share the round.
#pragma once

#include <optional>
#include <vector>

#include "parallel/expert/token_exchange.h"
#include "parallel/layout/dispatch_plan.h"
#include "trainer/model/block.h"
#include "trainer/model/expert_pool.h"
#include "trainer/model/linear.h"
#include "trainer/model/pair_sort.h"
#include "trainer/model/router/logits.h"
#include "trainer/model/router/router.h"

namespace moesaic {

// Where a rank's experts are and how its tokens reach the others. The pointees outlive the model;
// a change of placement is a new model.
struct ExpertParallel {
  const Mesh* mesh = nullptr;
  const ExpertPlacement* placement = nullptr;
  int rank = 0;                       // mine, in the mesh
  TokenExchange* exchange = nullptr;  // may be null where the mesh's expert_size() is 1
};

struct MoeConfig {
  int layer = 0;      // of the model
  int moe_index = 0;  // among the layers that have experts
  int use = 0;        // of the experts of its pool: which of the layers that share it
  int64_t expert_width = 0;
  RouterLogitsConfig logits;
  ParameterId router_bias = kNoParameter;  // none: kNoParameter, as for the next
  ParameterId router_load = kNoParameter;
  std::optional<SwiGluLayer> shared;
};

// Immutable; collective over the expert group: all its ranks make the same calls in the same order,
// with zero rows where they have no micro-batch.
class MoeLayer {
 public:
  MoeLayer(const MoeConfig& config, Router router, ExpertPool pool, const ExpertParallel& parallel);

  // Rows of one expert that are multiplied at once, and the gradient leaf they give.
  struct ExpertBatch {
    int expert = 0;
    RowRange rows;
    int64_t micro_batch = -1;
  };

  struct Saved {
    at::Tensor x;
    RouterLogits::Saved logits;
    RouteInputs route;
    Routing routing;
    SortedPairs pairs;
    DispatchPlan plan;
    std::vector<ExpertBatch> batches;
    at::Tensor received;    // [receive_rows, hidden]
    at::Tensor gate_up;     // [receive_rows, 2 width]
    at::Tensor activation;  // [receive_rows, width]
    at::Tensor returned;    // [send_rows, hidden]: expert outputs in sorted order
    SwiGluLayer::Saved shared;
    at::Tensor dexpert;  // [receive_rows, hidden]: gradient at the experts' outputs, from
                         // BackwardInput on
    at::Tensor dgate_up;
  };

  // The parameters that this rank computes gradients of: the router, the shared expert and the
  // experts it holds.
  std::vector<ParameterId> parameters() const;

  // residual.hidden + sum_k weight_k expert_k(x) (+ shared(x)), and the router's state for the next
  // layer. x [n, hidden] is what the router and the experts see.
  Bundle Forward(const at::Tensor& x, const Bundle& residual, PassContext& context,
                 Saved& saved) const;
  // Gradients at x (`hidden`) and at the router's state that came; the residual's is dout.hidden
  // itself.
  Bundle BackwardInput(const Bundle& dout, PassContext& context, Saved& saved) const;
  void BackwardWeight(const PassContext& context, const Saved& saved, GradientSink& sink) const;

 private:
  bool Exchanges() const { return parallel_.mesh->expert_size() > 1; }
  RouteInputs InputsOf(const at::Tensor& logits, const PassContext& context) const;
  // What the pass tells of the routing.
  void Record(const Saved& saved, const PassContext& context) const;
  // The loss over the pool's layers, once the last of them has routed.
  double PoolLoss(const PassScalars& scalars, int64_t tokens) const;
  // PoolPrices of this layer's pool; empty where there is no such loss.
  std::vector<double> PoolPricesOf(const PassScalars& scalars, int64_t tokens) const;
  DispatchPlan Plan(const MicroBatch& batch, std::span<const int64_t> counts) const;
  // received -> the experts' outputs, in the same order.
  at::Tensor RunExperts(WeightSource& weights, Saved& saved) const;

  MoeConfig config_;
  RouterLogits logits_;
  Router router_;
  ExpertPool pool_;
  ExpertParallel parallel_;
};

}  // namespace moesaic
