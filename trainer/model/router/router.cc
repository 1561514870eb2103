#include "trainer/model/router/router.h"

#include <ATen/ATen.h>

#include <vector>

#include "trainer/catalog/random_stream.h"
#include "trainer/model/router/candidates.h"
#include "trainer/model/router/capacity.h"
#include "trainer/model/router/gate.h"
#include "trainer/model/router/weight.h"

namespace moesaic {
namespace {

GroupRule GroupsOf(const SelectSpec& select) {
  const int64_t groups = select.groups();
  return {groups, select.has_group_limit() ? select.group_limit() : groups, select.group_score()};
}

}  // namespace

Router::Router(const RouterConfig& config)
    : config_(config),
      score_(FindScore(config.rule.score())),
      groups_(GroupsOf(config.rule.select())) {
  TORCH_CHECK(config_.active >= 1 && config_.active <= choices(), "router: ", config_.active,
              " active of ", choices(), " experts");
  TORCH_CHECK(config_.experts % groups_.groups == 0, "router: ", groups_.groups, " groups of ",
              config_.experts, " experts");
  if (config_.own == 0) config_.own = config_.experts;
}

Routing Router::Route(const RouteInputs& inputs) const {
  const at::Tensor& logits = inputs.logits;
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) == choices() && logits.is_contiguous() &&
                  logits.scalar_type() == at::kFloat,
              "router: fp32 logits of ", choices(), " experts are needed, got ", logits.sizes());
  Routing routing;
  routing.scores = at::empty_like(logits);
  score_.forward(logits, routing.scores);
  if (OpensGate(inputs)) {
    ChooseByGate(inputs, routing);
  } else {
    Choose(inputs, routing);
  }
  routing.counts = CountByExpert(routing.selected, experts());
  routing.weight = SelectedWeights(config_.rule.weight(), routing.scores, routing.selected);
  routing.aux_loss = BalanceLoss(BalanceOf(inputs, routing));
  routing.expert = routing.selected;
  const bool limited = config_.rule.select().has_capacity_factor();
  if (limited && inputs.training && !OpensGate(inputs)) {
    routing.expert = routing.selected.clone();
    routing.dropped = Drop(inputs, routing);
  }
  return routing;
}

bool Router::OpensGate(const RouteInputs& inputs) const {
  return inputs.training && config_.schedule.PhaseAt(inputs.step) == DENSE_TO_SPARSE;
}

void Router::Choose(const RouteInputs& inputs, Routing& routing) const {
  routing.candidates = Candidates(inputs);
  routing.selected = Select(inputs, routing);
  // What a bias does must not count as what the scores want (DeepSeek-V3, eq. 18).
  routing.balanced = inputs.bias.defined() && CountsSelected(config_.rule.balance(), inputs.step)
                         ? SelectTopK(WithoutOthers(routing.scores, routing.candidates), active())
                         : routing.selected;
  if (config_.nulls > 0) TakeNulls(routing);
}

void Router::ChooseByGate(const RouteInputs& inputs, Routing& routing) const {
  const DenseToSparseSpec& gate = config_.rule.select().dense_to_sparse();
  const double temperature = config_.schedule.TemperatureAt(inputs.step);
  const int64_t tokens = inputs.logits.size(0);
  const int64_t length = inputs.sequences > 0 ? tokens / inputs.sequences : 0;
  const at::Tensor probabilities =
      GateProbabilities(inputs.logits, {.temperature = temperature,
                                        .noise = gate.noise(),
                                        .seed = config_.seed,
                                        .step = inputs.step,
                                        .layer = config_.layer,
                                        .first_token = inputs.first_sample * length});
  routing.selected = SelectAbove(probabilities, static_cast<float>(gate.threshold()));
  routing.balanced = routing.selected;
  if (gate.weights() == DenseToSparseSpec::NOISY) {
    routing.scores = probabilities;
    routing.logit_scale = 1 / temperature;
  }
}

// Null experts leave what is computed, and stay in what is balanced.
void Router::TakeNulls(Routing& routing) const {
  const at::Tensor is_null = routing.selected.ge(experts());
  routing.balanced = routing.selected;
  routing.selected = routing.selected.masked_fill(is_null, -1);
  routing.nulls = is_null.sum().item<int64_t>();
}

at::Tensor Router::Candidates(const RouteInputs& inputs) const {
  if (!config_.rule.select().has_candidates() || !inputs.training) return {};
  return CandidateMask({.rule = &config_.rule.select().candidates(),
                        .seed = config_.seed,
                        .step = inputs.step,
                        .layer = config_.layer,
                        .own_begin = config_.own_begin,
                        .own = config_.own,
                        .experts = experts()});
}

at::Tensor Router::Select(const RouteInputs& inputs, const Routing& routing) const {
  at::Tensor suited = WithoutOthers(BiasedScores(routing.scores, inputs.bias), routing.candidates);
  if (groups_.limit < groups_.groups) {
    if (suited.is_same(routing.scores)) suited = suited.clone();
    MaskGroups(groups_, active(), suited);
  }
  suited = WithoutBest(suited, inputs.skip_best);
  const int64_t most = inputs.most > 0 ? inputs.most : active();
  const SelectSpec& select = config_.rule.select();
  return select.has_top_p() ? SelectTopP(suited, select.top_p(), most) : SelectTopK(suited, most);
}

int64_t Router::Drop(const RouteInputs& inputs, Routing& routing) const {
  const SelectSpec& select = config_.rule.select();
  const int64_t tokens = inputs.logits.size(0);
  CapacityLimit limit;
  limit.bins = select.capacity_of() == GROUP ? groups_.groups : choices();
  limit.capacity = BinCapacity(select.capacity_factor(), tokens, active(), limit.bins);
  limit.order = select.drop();
  if (select.never_dropped() > 0 && inputs.sequences > 0) {
    const RandomStream stream(config_.seed, "never_dropped", "");
    const int64_t length = tokens / inputs.sequences;
    for (int64_t s = 0; s < inputs.sequences; ++s) {
      const bool exempt = stream.Uniform(static_cast<uint64_t>(inputs.first_sample + s)) <
                          select.never_dropped();
      limit.exempt.insert(limit.exempt.end(), length, exempt);
    }
  }
  return DropBeyondCapacity(limit, routing.scores, routing.expert);
}

BalanceInputs Router::BalanceOf(const RouteInputs& inputs, const Routing& routing) const {
  const BalanceSpec& rule = config_.rule.balance();
  BalanceInputs balance = {.rule = &rule,
                           .step = inputs.step,
                           .score = &score_,
                           .logits = inputs.logits,
                           .scores = routing.scores,
                           .selected = routing.balanced,
                           .sequences = inputs.sequences,
                           .groups = groups_.groups,
                           .group_limit = groups_.limit,
                           .nulls = config_.nulls,
                           .candidates = routing.candidates,
                           .fan_out = OpensGate(inputs) ? 1.0 : 0.0,
                           .load = inputs.load};
  if (rule.has_groups() && rule.groups() != groups_.groups) {
    balance.groups = balance.group_limit = rule.groups();
  }
  return balance;
}

std::vector<double> Router::ProbabilitySums(const RouteInputs& inputs,
                                            const Routing& routing) const {
  return moesaic::ProbabilitySums(BalanceOf(inputs, routing));
}

at::Tensor Router::Backward(const RouteInputs& inputs, const Routing& routing,
                            const at::Tensor& dweight, double aux_scale,
                            std::span<const double> pool_prices) const {
  at::Tensor dscores = at::zeros_like(routing.scores);
  SelectedWeightsBackward(config_.rule.weight(), routing.scores, routing.selected, dweight,
                          dscores);
  at::Tensor z_gradient = at::zeros_like(routing.scores);
  BalanceInputs balance = BalanceOf(inputs, routing);
  balance.pool_prices = pool_prices;
  BalanceLossBackward(balance, aux_scale, dscores, z_gradient);
  at::Tensor dlogits = at::empty_like(routing.scores);
  score_.backward(routing.scores, dscores, dlogits);
  if (routing.logit_scale != 1) dlogits.mul_(routing.logit_scale);
  return dlogits.add_(z_gradient);
}

}  // namespace moesaic
