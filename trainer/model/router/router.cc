#include "trainer/model/router/router.h"

#include <ATen/ATen.h>

#include "trainer/model/router/balance.h"
#include "trainer/model/router/select.h"
#include "trainer/model/router/weight.h"

namespace moesaic {

Router::Router(const RouterSpec& rule, int64_t experts, int64_t active)
    : rule_(rule), score_(FindScore(rule.score())), experts_(experts), active_(active) {
  TORCH_CHECK(active >= 1 && active <= experts, "router: ", active, " active of ", experts,
              " experts");
}

Routing Router::Route(const at::Tensor& logits, bool dropless) const {
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) == experts_ && logits.is_contiguous() &&
                  logits.scalar_type() == at::kFloat,
              "router: fp32 logits of ", experts_, " experts are needed, got ", logits.sizes());
  Routing routing;
  routing.logits = logits;
  routing.scores = at::empty_like(logits);
  score_.forward(logits, routing.scores);
  routing.selected = SelectTopK(routing.scores, active_);
  routing.counts = CountByExpert(routing.selected, experts_);
  routing.weight = SelectedWeights(rule_.weight(), routing.scores, routing.selected);
  routing.aux_loss =
      BalanceLoss({&rule_.balance(), &score_, logits, routing.scores, routing.counts, active_});
  routing.expert = routing.selected;
  if (rule_.select().has_capacity_factor() && !dropless) {
    routing.expert = routing.selected.clone();
    const int64_t capacity =
        ExpertCapacity(rule_.select().capacity_factor(), logits.size(0), active_, experts_);
    routing.dropped = DropBeyondCapacity(capacity, experts_, routing.expert);
  }
  return routing;
}

at::Tensor Router::Backward(const Routing& routing, const at::Tensor& dweight,
                            double aux_scale) const {
  at::Tensor dscores = at::zeros_like(routing.scores);
  SelectedWeightsBackward(rule_.weight(), routing.scores, routing.selected, dweight, dscores);
  at::Tensor z_gradient = at::zeros_like(routing.logits);
  BalanceLossBackward(
      {&rule_.balance(), &score_, routing.logits, routing.scores, routing.counts, active_},
      aux_scale, dscores, z_gradient);
  at::Tensor dlogits = at::empty_like(routing.logits);
  score_.backward(routing.scores, dscores, dlogits);
  return dlogits.add_(z_gradient);
}

}  // namespace moesaic
