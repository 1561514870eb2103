#include "parallel/layout/dispatch_plan.h"

#include <cstdlib>

#include "base/log.h"

namespace moesaic {
namespace {

// One call's view of its inputs.
struct Planner {
  const DispatchInputs& in;
  std::span<const int> sources;  // mesh ranks of the expert communicator, in its order
  int experts = 0;

  int64_t Rows(int source, int expert) const {
    return in.counts[static_cast<size_t>(source) * experts + expert];
  }
  int Destination(int source, int expert) const {
    return in.placement->Destination(*in.mesh, sources[source], in.layer, expert);
  }
};

void Check(const Planner& planner) {
  const DispatchInputs& in = planner.in;
  const size_t sources = planner.sources.size();
  if (in.counts.size() == sources * planner.experts && in.micro_batches.size() == sources) return;
  LogError(
      "[dispatch] layer {}: {} sources and {} experts need {} counts and {} micro-batches, "
      "given {} and {}",
      in.layer, sources, planner.experts, sources * planner.experts, sources, in.counts.size(),
      in.micro_batches.size());
  std::abort();
}

void PlanSend(const Planner& planner, int me, DispatchPlan& plan) {
  plan.send.resize(planner.sources.size());
  for (int e = 0; e < planner.experts; ++e) {
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
  for (int e : planner.in.placement->ExpertsOf(planner.in.rank, planner.in.layer)) {
    const int64_t begin = plan.receive_rows;
    for (int s = 0; s < sources; ++s) {
      const bool mine = planner.Destination(s, e) == planner.in.rank;
      const RowRange range{plan.receive_rows, mine ? planner.Rows(s, e) : 0};
      plan.segments.push_back({e, s, planner.in.micro_batches[s], range});
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
  const Planner planner{inputs, inputs.mesh->expert_ranks(place.expert_group),
                        inputs.placement->experts(inputs.layer)};
  Check(planner);
  DispatchPlan plan;
  PlanSend(planner, place.expert, plan);
  PlanReceive(planner, plan);
  return plan;
}

}  // namespace moesaic
