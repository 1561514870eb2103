// ClusterState: experts of a running job move to where their load is shared better.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "scheduler/state/cluster_state.h"
#include "trainer/catalog/sizing.h"

namespace moesaic {
namespace {

// A graceful change takes no less.
constexpr absl::Duration kPause = absl::Seconds(3);

}  // namespace

RebalanceRules ClusterState::RebalanceRulesOf(const JobSpec& spec) {
  return {.ratio = spec.model().has_moe() ? spec.elastic().rebalance_ratio() : 0,
          .after = absl::Seconds(spec.elastic().rebalance_after())};
}

// The nodes that run the job now.
std::vector<PlanNode> ClusterState::LiveNodes(const Job& job) const {
  std::vector<PlanNode> nodes;
  for (const std::string& name : job.live->record.nodes()) {
    const auto node = nodes_.find(name);
    if (node == nodes_.end()) continue;
    const AgentRegistration& registration = node->second.registration;
    nodes.push_back(
        {name, registration.slots(), registration.cores(), registration.memory_bytes()});
  }
  return nodes;
}

// What is known of the generation's balance by the newest load that is recorded; nothing where the
// experts could not move on these nodes.
std::optional<RebalanceFacts> ClusterState::BalanceOf(const Job& job,
                                                      const TrainingState& state) const {
  const absl::StatusOr<GenerationPlan> stay = Plan(job, LiveNodes(job), &state, false);
  if (!stay.ok() || !stay->kept_placement) return std::nullopt;
  const absl::StatusOr<GenerationPlan> move = Plan(job, LiveNodes(job), &state, true);
  const absl::StatusOr<ParameterCatalog> catalog = ParameterCatalog::Build(job.spec());
  if (!move.ok() || !catalog.ok()) return std::nullopt;
  const Generation& live = *job.live;
  return RebalanceFacts{
      .imbalance = stay->imbalance,
      .possible = move->imbalance,
      .expert_share = ExpertShare(job.spec(), *catalog),
      .step_seconds = live.steps > 0 ? live.step_seconds / static_cast<double>(live.steps) : 0,
      .steps_left = job.spec().train().steps() - std::min(job.spec().train().steps(), state.step()),
      .pause_seconds = absl::ToDoubleSeconds(std::max(kPause, 2 * live.start_took))};
}

void ClusterState::ConsiderRebalance(Job* job) {
  if (job->state() != RUNNING || job->record.stop() != STOP_NONE) return;
  const Generation& live = *job->live;
  if (live.killing || live.exit_code || !live.awaited.empty()) return;
  if (!job->rebalance.Due(now_)) return;
  // Only the generation's own snapshots say how its experts are loaded where they lie.
  const auto newest = job->snapshots.Newest(*this);
  if (!newest || newest->step <= live.started_at_step) return;
  const auto facts = BalanceOf(*job, newest->record.state());
  if (!facts) {
    job->rebalance.Forget();
    return;
  }
  const auto why = job->rebalance.Consider(*facts, now_);
  if (!why) return;
  job->move_experts = true;
  StopAtStep(job, fmt::format("saving in memory, to move experts: {}", *why));
}

}  // namespace moesaic
