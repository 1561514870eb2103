#include "trainer/model/moe_layer.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "parallel/expert/grouped_linear.h"
#include "trainer/model/kernels/kernels.h"
#include "trainer/model/router/observe.h"

namespace moesaic {
namespace {

using ExpertBatch = MoeLayer::ExpertBatch;

// The ids of the micro-batches of this round, by rank of the expert communicator.
std::vector<int64_t> RoundIds(const MicroBatch& batch, int expert_size) {
  if (batch.round_ids.empty() && expert_size == 1) return {batch.id};
  TORCH_CHECK(static_cast<int>(batch.round_ids.size()) == expert_size, "a round of ",
              batch.round_ids.size(), " micro-batch ids in an expert group of ", expert_size);
  return batch.round_ids;
}

// Reproducible: a batch a segment that has rows. Fast: a batch an expert, with or without rows,
// whose leaf bears the lowest micro-batch id of the round.
std::vector<ExpertBatch> BatchesOf(const DispatchPlan& plan, std::span<const int64_t> round_ids,
                                   bool reproducible) {
  std::vector<ExpertBatch> batches;
  if (reproducible) {
    for (const Segment& segment : plan.segments) {
      if (segment.rows.rows > 0) {
        batches.push_back({segment.expert, segment.rows, segment.micro_batch});
      }
    }
    return batches;
  }
  int64_t lowest = -1;
  for (int64_t id : round_ids) {
    if (id >= 0 && (lowest < 0 || id < lowest)) lowest = id;
  }
  if (lowest < 0) return batches;
  for (const DispatchPlan::ExpertRows& expert : plan.experts) {
    batches.push_back({expert.expert, expert.rows, lowest});
  }
  return batches;
}

// Leases `which` of each expert that has rows.
std::vector<LinearGroup> LeaseGroups(std::span<const ExpertBatch> batches, const ExpertPool& pool,
                                     ParameterId ExpertParameters::*which, WeightSource& weights) {
  std::vector<LinearGroup> groups;
  int leased = -1;
  for (const ExpertBatch& batch : batches) {
    if (batch.rows.rows == 0) continue;
    LinearGroup group{batch.rows.begin, batch.rows.rows, {}};
    // Batches are sorted by expert: its segments share one lease.
    group.weight =
        batch.expert == leased ? groups.back().weight : weights.Lease(pool[batch.expert].*which);
    leased = batch.expert;
    groups.push_back(std::move(group));
  }
  return groups;
}

void ReportExperts(const at::Tensor& dy, const at::Tensor& x, std::span<const ExpertBatch> batches,
                   const ExpertPool& pool, ParameterId ExpertParameters::*which, int use,
                   GradientSink& sink) {
  std::vector<WeightGradient> groups;
  for (const ExpertBatch& batch : batches) {
    const auto slot = sink.Open(pool[batch.expert].*which, use, batch.micro_batch);
    groups.push_back({batch.rows.begin, batch.rows.rows, slot.gradient, slot.accumulate});
  }
  GroupedLinearBackwardWeight(dy, x, groups);
  for (const ExpertBatch& batch : batches) {
    sink.Close(pool[batch.expert].*which, use, batch.micro_batch);
  }
}

// Reproducible mode: the leaves of segments without rows.
void SkipEmptySegments(const DispatchPlan& plan, const ExpertPool& pool, int use,
                       GradientSink& sink) {
  for (const Segment& segment : plan.segments) {
    if (segment.rows.rows > 0 || !segment.here || segment.micro_batch < 0) continue;
    sink.Skip(pool[segment.expert].gate_up, use, segment.micro_batch);
    sink.Skip(pool[segment.expert].down, use, segment.micro_batch);
  }
}

// Rows that leave for other ranks than `me` of the expert communicator.
int64_t WireRows(const DispatchPlan& plan, int me) {
  int64_t rows = 0;
  for (int to = 0; to < static_cast<int>(plan.send.size()); ++to) {
    if (to == me) continue;
    for (const RowRange& range : plan.send[to]) rows += range.rows;
  }
  return rows;
}

}  // namespace

MoeLayer::MoeLayer(const MoeConfig& config, Router router, ExpertPool pool,
                   const ExpertParallel& parallel)
    : config_(config),
      logits_(config.logits),
      router_(std::move(router)),
      pool_(std::move(pool)),
      parallel_(parallel) {
  TORCH_CHECK(pool_.size() == router_.experts(), "layer ", config.layer, ": a router of ",
              router_.experts(), " over a pool of ", pool_.size(), " experts");
  TORCH_CHECK(parallel_.exchange != nullptr || !Exchanges(), "layer ", config.layer,
              ": experts lie on several ranks, and there is no exchange");
}

std::vector<ParameterId> MoeLayer::parameters() const {
  std::vector<ParameterId> ids = logits_.parameters();
  for (ParameterId id : {config_.router_bias, config_.router_load}) {
    if (id != kNoParameter) ids.push_back(id);
  }
  if (config_.shared) {
    for (ParameterId id : config_.shared->parameters()) ids.push_back(id);
  }
  for (int id = 0; id < pool_.size(); ++id) {
    const ExpertParameters& expert = pool_[id];
    if (!parallel_.placement->Holds(parallel_.rank, expert.layer, expert.index)) continue;
    ids.push_back(expert.gate_up);
    ids.push_back(expert.down);
  }
  return ids;
}

RouteInputs MoeLayer::InputsOf(const at::Tensor& logits, const PassContext& context) const {
  WeightSource& weights = *context.weights;
  RouteInputs route;
  route.logits = logits;
  route.sequences = context.micro_batch->sequences;
  route.first_sample = context.micro_batch->first_sample;
  route.step = context.options->step;
  route.training = context.options->training;
  route.skip_best = context.options->ablation.skip_best;
  route.most = context.options->ablation.active;
  if (config_.router_bias != kNoParameter) route.bias = weights.Lease(config_.router_bias);
  if (config_.router_load != kNoParameter) route.load = weights.Lease(config_.router_load);
  return route;
}

void MoeLayer::Record(const Saved& saved, const PassContext& context) const {
  const Routing& routing = saved.routing;
  PassScalars& scalars = *context.scalars;
  const size_t layers = config_.moe_index + 1;
  scalars.aux_loss += routing.aux_loss;
  scalars.routing.resize(std::max(scalars.routing.size(), layers));
  scalars.routing[config_.moe_index] = Observe(routing, context.options->note_best);
  if (router_.pool_coefficient() == 0) return;
  scalars.probability_sums.resize(std::max(scalars.probability_sums.size(), layers));
  scalars.probability_sums[config_.moe_index] = router_.ProbabilitySums(saved.route, routing);
  const bool is_last = config_.use + 1 == static_cast<int>(pool_.layers().size());
  if (is_last) scalars.aux_loss += PoolLoss(scalars, saved.x.size(0));
}

std::vector<double> MoeLayer::PoolPricesOf(const PassScalars& scalars, int64_t tokens) const {
  if (router_.pool_coefficient() == 0 || tokens == 0) return {};
  const std::span<const LayerRouting> routing = scalars.routing;
  return PoolPrices(router_.pool_coefficient(),
                    routing.subspan(config_.moe_index - config_.use, pool_.layers().size()),
                    tokens);
}

double MoeLayer::PoolLoss(const PassScalars& scalars, int64_t tokens) const {
  const std::vector<double> prices = PoolPricesOf(scalars, tokens);
  double loss = 0;
  for (int layer = config_.moe_index - config_.use; layer <= config_.moe_index; ++layer) {
    const std::vector<double>& sums = scalars.probability_sums[layer];
    for (size_t i = 0; i < prices.size(); ++i) loss += prices[i] * sums[i];
  }
  return loss;
}

DispatchPlan MoeLayer::Plan(const MicroBatch& batch, std::span<const int64_t> counts) const {
  const std::vector<int64_t> ids = RoundIds(batch, parallel_.mesh->expert_size());
  std::vector<int64_t> all(counts.begin(), counts.end());
  if (Exchanges()) all = parallel_.exchange->ShareCounts(counts);
  return PlanDispatch(
      {parallel_.mesh, parallel_.placement, parallel_.rank, pool_.layers(), all, ids});
}

at::Tensor MoeLayer::RunExperts(WeightSource& weights, Saved& saved) const {
  const int64_t rows = saved.received.size(0);
  const auto options = saved.received.options();
  saved.gate_up = at::empty({rows, 2 * config_.expert_width}, options);
  GroupedLinear(saved.received,
                LeaseGroups(saved.batches, pool_, &ExpertParameters::gate_up, weights),
                saved.gate_up);
  saved.activation = at::empty({rows, config_.expert_width}, options);
  SwiGlu(saved.gate_up, saved.activation);
  at::Tensor produced = at::empty_like(saved.received);
  GroupedLinear(saved.activation,
                LeaseGroups(saved.batches, pool_, &ExpertParameters::down, weights), produced);
  return produced;
}

Bundle MoeLayer::Forward(const at::Tensor& x, const Bundle& residual, PassContext& context,
                         Saved& saved) const {
  const MicroBatch& batch = *context.micro_batch;
  WeightSource& weights = *context.weights;
  saved.x = x;
  ProfiledScope scope(context.options->profile, Part::kRouter);
  const RouterLogits::Output routed =
      logits_.Forward(x, residual.router_state, weights, saved.logits);
  saved.route = InputsOf(routed.logits, context);
  saved.routing = router_.Route(saved.route);
  Record(saved, context);
  scope.Switch(Part::kPermute);
  saved.pairs = SortByExpert(saved.routing.expert, router_.experts());
  scope.Switch(Part::kExchange);
  saved.plan = Plan(batch, saved.pairs.counts);
  saved.batches = BatchesOf(saved.plan, RoundIds(batch, parallel_.mesh->expert_size()),
                            context.options->reproducible);
  context.scalars->routing[config_.moe_index].wire_rows =
      WireRows(saved.plan, parallel_.mesh->place(parallel_.rank).expert);

  scope.Switch(Part::kPermute);
  at::Tensor sorted = at::empty({saved.plan.send_rows, x.size(1)}, x.options());
  GatherRows(x, saved.pairs.token, sorted);
  scope.Switch(Part::kExchange);
  saved.received = Exchanges() ? parallel_.exchange->Dispatch(sorted, saved.plan) : sorted;
  scope.Switch(Part::kExperts);
  const at::Tensor produced = RunExperts(weights, saved);
  scope.Switch(Part::kExchange);
  saved.returned = Exchanges() ? parallel_.exchange->Return(produced, saved.plan) : produced;

  scope.Switch(Part::kExperts);
  at::Tensor add = residual.hidden;
  if (config_.shared && context.options->ablation.shared) {
    add = config_.shared->Forward(x, weights, saved.shared).add_(add);
  }
  scope.Switch(Part::kPermute);
  at::Tensor out = at::empty_like(x);
  CombineRows(saved.returned, saved.pairs.position, saved.routing.weight, add, out);
  return {out, routed.state};
}

Bundle MoeLayer::BackwardInput(const Bundle& grad_out, PassContext& context, Saved& saved) const {
  const at::Tensor& dout = grad_out.hidden;
  WeightSource& weights = *context.weights;
  ProfiledScope scope(context.options->profile, Part::kPermute);
  at::Tensor drows = at::empty_like(saved.returned);
  at::Tensor dweight = at::empty_like(saved.routing.weight);
  CombineRowsBackward(dout, saved.returned, saved.pairs.position, saved.routing.weight, drows,
                      dweight);
  saved.returned = at::Tensor();

  scope.Switch(Part::kExchange);
  saved.dexpert = Exchanges() ? parallel_.exchange->Dispatch(drows, saved.plan) : drows;
  scope.Switch(Part::kExperts);
  at::Tensor dactivation = at::empty_like(saved.activation);
  GroupedLinearBackwardInput(saved.dexpert,
                             LeaseGroups(saved.batches, pool_, &ExpertParameters::down, weights),
                             dactivation);
  saved.dgate_up = at::empty_like(saved.gate_up);
  SwiGluBackward(dactivation, saved.gate_up, saved.dgate_up);
  saved.gate_up = at::Tensor();
  at::Tensor dreceived = at::empty_like(saved.received);
  GroupedLinearBackwardInput(saved.dgate_up,
                             LeaseGroups(saved.batches, pool_, &ExpertParameters::gate_up, weights),
                             dreceived);
  scope.Switch(Part::kExchange);
  const at::Tensor dsorted =
      Exchanges() ? parallel_.exchange->Return(dreceived, saved.plan) : dreceived;

  scope.Switch(Part::kExperts);
  at::Tensor add;
  if (config_.shared) add = config_.shared->BackwardInput(dout, weights, saved.shared);
  scope.Switch(Part::kPermute);
  at::Tensor dx = at::empty_like(dout);
  CombineRows(dsorted, saved.pairs.position, {}, add, dx);
  scope.Switch(Part::kRouter);
  const at::Tensor dlogits =
      router_.Backward(saved.route, saved.routing, dweight, context.options->aux_scale,
                       PoolPricesOf(*context.scalars, saved.x.size(0)));
  const RouterLogits::InputGradients through =
      logits_.BackwardInput(dlogits, grad_out.router_state, weights, saved.logits);
  return {dx.add_(through.dx), through.dstate};
}

void MoeLayer::BackwardWeight(const PassContext& context, const Saved& saved,
                              GradientSink& sink) const {
  ProfiledScope scope(context.options->profile, Part::kExperts);
  // Experts first: they compute for the whole group, whether or not this rank has tokens.
  ReportExperts(saved.dexpert, saved.activation, saved.batches, pool_, &ExpertParameters::down,
                config_.use, sink);
  ReportExperts(saved.dgate_up, saved.received, saved.batches, pool_, &ExpertParameters::gate_up,
                config_.use, sink);
  if (context.options->reproducible) SkipEmptySegments(saved.plan, pool_, config_.use, sink);
  const MicroBatch& batch = *context.micro_batch;
  if (batch.sequences == 0) return;
  if (config_.shared) config_.shared->BackwardWeight(saved.shared, batch.id, sink);
  scope.Switch(Part::kRouter);
  logits_.BackwardWeight(saved.logits, batch.id, sink);
}

}  // namespace moesaic
