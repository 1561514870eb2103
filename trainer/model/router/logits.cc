#include "trainer/model/router/logits.h"

#include <ATen/ATen.h>

#include "trainer/model/linear.h"

namespace moesaic {

std::vector<ParameterId> RouterLogits::parameters() const {
  std::vector<ParameterId> ids = {config_.weight};
  if (!config_.recurrent) return ids;
  ids.push_back(config_.recurrent->projection);
  for (ParameterId id : GruCell(config_.recurrent->cell).parameters()) ids.push_back(id);
  return ids;
}

RouterLogits::Output RouterLogits::Forward(const at::Tensor& x, const at::Tensor& state,
                                           WeightSource& weights, Saved& saved) const {
  saved.x = x.to(at::kFloat);
  saved.h = saved.x;
  Output out = {{}, state};
  if (config_.recurrent) {
    const at::Tensor u = Linear(saved.x, weights.Lease(config_.recurrent->projection));
    const bool carried = state.defined() && config_.recurrent->mode != NOT_PASSED;
    saved.h = GruCell(config_.recurrent->cell)
                  .Forward(u, carried ? state : at::Tensor(), weights, saved.cell);
    out.state = saved.h;
  }
  out.logits = Linear(saved.h, weights.Lease(config_.weight));
  return out;
}

RouterLogits::InputGradients RouterLogits::BackwardInput(const at::Tensor& dlogits,
                                                         const at::Tensor& dstate,
                                                         WeightSource& weights,
                                                         Saved& saved) const {
  saved.dlogits = dlogits;
  at::Tensor dh = LinearBackwardInput(dlogits, weights.Lease(config_.weight));
  if (!config_.recurrent) return {dh, dstate};
  if (dstate.defined()) dh.add_(dstate);
  GruCell::InputGradients through =
      GruCell(config_.recurrent->cell).BackwardInput(dh, weights, saved.cell);
  saved.du = through.du;
  return {LinearBackwardInput(saved.du, weights.Lease(config_.recurrent->projection)),
          config_.recurrent->mode == CARRY ? through.dh : at::Tensor()};
}

void RouterLogits::BackwardWeight(const Saved& saved, int64_t micro_batch,
                                  GradientSink& sink) const {
  ReportLinear(saved.dlogits, saved.h, config_.weight, 0, micro_batch, sink);
  if (!config_.recurrent) return;
  ReportLinear(saved.du, saved.x, config_.recurrent->projection, 0, micro_batch, sink);
  GruCell(config_.recurrent->cell)
      .BackwardWeight(saved.cell, config_.recurrent->use, micro_batch, sink);
}

}  // namespace moesaic
