#include "parallel/layout/dispatch_plan.h"

#include <cstdlib>
#include <vector>

#include "base/log.h"

namespace moesaic {
namespace {

// An expert as the placement knows it.
struct PooledExpert {
  int layer = 0;
  int index = 0;
};

std::vector<PooledExpert> PoolOf(const DispatchInputs& in) {
  std::vector<PooledExpert> pool;
  for (const int layer : in.layers) {
    for (int index = 0; index < in.placement->experts(layer); ++index) {
      pool.push_back({layer, index});
    }
  }
  return pool;
}

// One call's view of its inputs.
struct Planner {
  const DispatchInputs& in;
  std::span<const int> sources;  // mesh ranks of the expert communicator, in its order
  std::vector<PooledExpert> pool;

  int experts() const { return static_cast<int>(pool.size()); }
  int64_t Rows(int source, int expert) const {
    return in.counts[static_cast<size_t>(source) * pool.size() + expert];
  }
  int Destination(int source, int expert) const {
    const auto [layer, index] = pool[expert];
    return in.placement->Destination(*in.mesh, sources[source], layer, index);
  }
  bool HoldsHere(int expert) const {
    return in.placement->Holds(in.rank, pool[expert].layer, pool[expert].index);
  }
};

void Check(const Planner& planner) {
  const DispatchInputs& in = planner.in;
  const size_t sources = planner.sources.size();
  const size_t counts = sources * planner.pool.size();
  if (in.counts.size() == counts && in.micro_batches.size() == sources) return;
  LogError(
      "[dispatch] {} sources and {} experts need {} counts and {} micro-batches, given {} and {}",
      sources, planner.pool.size(), counts, sources, in.counts.size(), in.micro_batches.size());
  std::abort();
}

void PlanSend(const Planner& planner, int me, DispatchPlan& plan) {
  plan.send.resize(planner.sources.size());
  for (int e = 0; e < planner.experts(); ++e) {
    const int64_t rows = planner.Rows(me, e);
    if (rows == 0) continue;
    const int to = planner.in.mesh->place(planner.Destination(me, e)).expert;
    plan.send[to].push_back({plan.send_rows, rows});
    plan.send_rows += rows;
  }
}

void PlanReceive(const Planner& planner, DispatchPlan& plan) {
  const int sources = static_cast<int>(planner.sources.size());
  plan.receive.resize(sources);
  for (int e = 0; e < planner.experts(); ++e) {
    if (!planner.HoldsHere(e)) continue;
    const int64_t begin = plan.receive_rows;
    for (int s = 0; s < sources; ++s) {
      const bool mine = planner.Destination(s, e) == planner.in.rank;
      const RowRange range{plan.receive_rows, mine ? planner.Rows(s, e) : 0};
      plan.segments.push_back({e, s, planner.in.micro_batches[s], range, mine});
      if (range.rows == 0) continue;
      plan.receive[s].push_back(range);
      plan.receive_rows += range.rows;
    }
    plan.experts.push_back({e, {begin, plan.receive_rows - begin}});
  }
}

}  // namespace

DispatchPlan PlanDispatch(const DispatchInputs& inputs) {
  const RankPlace& place = inputs.mesh->place(inputs.rank);
  const Planner planner{inputs, inputs.mesh->expert_ranks(place.expert_group), PoolOf(inputs)};
  Check(planner);
  DispatchPlan plan;
  PlanSend(planner, place.expert, plan);
  PlanReceive(planner, plan);
  return plan;
}

}  // namespace moesaic
