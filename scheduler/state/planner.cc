#include "scheduler/state/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "parallel/layout/micro_batch_plan.h"
#include "proto/job_spec.h"

namespace moesaic {
namespace {

int64_t Rounds(const JobSpec& spec, uint32_t ranks) {
  const int64_t micro_batches = spec.train().global_batch() / spec.train().micro_batch();
  return MicroBatchPlan{micro_batches, static_cast<int>(ranks)}.rounds();
}

// The expert degree for so many ranks; nothing when parallel.expert does not divide them.
std::optional<uint32_t> ExpertDegree(const JobSpec& spec, uint32_t ranks) {
  if (!spec.model().has_moe()) return 1;
  if (spec.parallel().has_expert()) {
    const uint32_t degree = spec.parallel().expert();
    return ranks % degree == 0 ? std::optional<uint32_t>(degree) : std::nullopt;
  }
  uint32_t degree = std::min(ranks, spec.model().moe().experts());
  while (ranks % degree != 0) --degree;
  return degree;
}

// Splits off the nodes that cannot hold a job's ranks.
std::vector<SpareNode> TakeUnusable(const JobSpec& spec, std::vector<PlanNode>* nodes) {
  const uint32_t wanted = spec.elastic().slots_per_node();
  std::vector<SpareNode> spares;
  if (spec.launch().oversubscribe()) return spares;
  std::erase_if(*nodes, [&](const PlanNode& node) {
    if (node.slots >= wanted) return false;
    spares.push_back({node.id, fmt::format("{} has {} slots, the job wants {} a node", node.id,
                                           node.slots, wanted)});
    return true;
  });
  return spares;
}

absl::Status TooFewNodes(const JobSpec& spec, size_t usable, const std::vector<SpareNode>& spares) {
  std::string message = fmt::format("{} of at least {} nodes with {} slots", usable,
                                    spec.elastic().nodes().min(), spec.elastic().slots_per_node());
  for (const SpareNode& spare : spares) message += "; " + spare.reason;
  return absl::FailedPreconditionError(message);
}

// The number of nodes to use, or nothing when the expert degree fits none.
std::optional<uint32_t> ChooseNodes(const JobSpec& spec, uint32_t usable) {
  const uint32_t slots = spec.elastic().slots_per_node();
  std::optional<uint32_t> best;
  for (uint32_t n = spec.elastic().nodes().min(); n <= usable; ++n) {
    if (!ExpertDegree(spec, n * slots)) continue;
    if (!best || Rounds(spec, n * slots) < Rounds(spec, *best * slots)) best = n;
  }
  return best;
}

uint32_t Threads(const JobSpec& spec, const std::vector<PlanNode>& nodes) {
  if (spec.launch().has_threads()) return spec.launch().threads();
  uint32_t cores = nodes.front().cores;
  for (const PlanNode& node : nodes) cores = std::min(cores, node.cores);
  return std::max<uint32_t>(1, cores / spec.elastic().slots_per_node());
}

std::vector<RankPlace> Places(const std::vector<PlanNode>& nodes, uint32_t slots, uint32_t degree) {
  std::vector<RankPlace> places;
  for (uint32_t rank = 0; rank < nodes.size() * slots; ++rank) {
    RankPlace place;
    place.rank = static_cast<int>(rank);
    place.node = nodes[rank / slots].id;
    place.local_rank = static_cast<int>(rank % slots);
    place.data = static_cast<int>(rank);
    place.expert_group = static_cast<int>(rank / degree);
    place.expert = static_cast<int>(rank % degree);
    places.push_back(std::move(place));
  }
  return places;
}

std::vector<int> ExpertsOfLayers(const ModelSpec& model) {
  std::vector<int> experts;
  for (uint32_t layer = 0; layer < model.layers(); ++layer) {
    experts.push_back(
        IsMoeLayer(model, static_cast<int>(layer)) ? static_cast<int>(model.moe().experts()) : 0);
  }
  return experts;
}

}  // namespace

absl::StatusOr<GenerationPlan> PlanGeneration(const JobSpec& spec, std::vector<PlanNode> nodes,
                                              uint64_t placement_epoch) {
  std::sort(nodes.begin(), nodes.end(),
            [](const PlanNode& a, const PlanNode& b) { return a.id < b.id; });
  std::vector<SpareNode> spares = TakeUnusable(spec, &nodes);
  if (nodes.size() < spec.elastic().nodes().min()) return TooFewNodes(spec, nodes.size(), spares);

  const uint32_t slots = spec.elastic().slots_per_node();
  const uint32_t usable =
      std::min(static_cast<uint32_t>(nodes.size()), spec.elastic().nodes().max());
  const std::optional<uint32_t> count = ChooseNodes(spec, usable);
  if (!count) {
    return absl::InvalidArgumentError(fmt::format(
        "parallel.expert {} divides the ranks of no number of nodes from {} to {} with {} slots "
        "each; choose a divisor of the ranks, or leave it auto",
        spec.parallel().expert(), spec.elastic().nodes().min(), usable, slots));
  }
  for (size_t i = *count; i < nodes.size(); ++i) {
    spares.push_back(
        {nodes[i].id,
         i >= spec.elastic().nodes().max()
             ? fmt::format("elastic.nodes.max is {}", spec.elastic().nodes().max())
             : fmt::format("{} nodes need as many rounds of micro-batches a step", *count)});
  }
  nodes.resize(*count);

  const uint32_t degree = *ExpertDegree(spec, *count * slots);
  absl::StatusOr<Mesh> mesh = Mesh::Create(Places(nodes, slots, degree));
  if (!mesh.ok()) return mesh.status();
  ExpertPlacement placement = ExpertPlacement::Even(*mesh, ExpertsOfLayers(spec.model()));
  std::vector<std::vector<std::vector<int>>> holders(placement.layers());
  for (int layer = 0; layer < placement.layers(); ++layer) {
    for (int expert = 0; expert < placement.experts(layer); ++expert) {
      const auto ranks = placement.holders(layer, expert);
      holders[layer].emplace_back(ranks.begin(), ranks.end());
    }
  }
  absl::StatusOr<ExpertPlacement> placed =
      ExpertPlacement::Create(*mesh, placement_epoch, std::move(holders));
  if (!placed.ok()) return placed.status();

  const uint32_t threads = Threads(spec, nodes);
  std::string layout =
      fmt::format("{} node{}, data {}, expert {}, {} thread{} a rank", *count,
                  *count == 1 ? "" : "s", mesh->size(), degree, threads, threads == 1 ? "" : "s");
  return GenerationPlan{std::move(nodes),   std::move(spares), *std::move(mesh),
                        *std::move(placed), threads,           std::move(layout)};
}

RankTable MakeRankTable(const JobSpec& spec, const GenerationPlan& plan) {
  RankTable table;
  for (int rank = 0; rank < plan.mesh.size(); ++rank) {
    const RankPlace& place = plan.mesh.place(rank);
    RankEntry* entry = table.add_ranks();
    entry->set_rank(rank);
    entry->set_node(place.node);
    entry->set_local_rank(place.local_rank);
    entry->set_data(place.data);
    entry->set_expert_group(place.expert_group);
    entry->set_expert(place.expert);
  }
  table.set_placement_epoch(plan.placement.epoch());
  for (int layer = 0; layer < plan.placement.layers(); ++layer) {
    for (int expert = 0; expert < plan.placement.experts(layer); ++expert) {
      ExpertHolders* holders = table.add_placement();
      holders->set_layer(layer);
      holders->set_expert(expert);
      for (const int rank : plan.placement.holders(layer, expert)) holders->add_ranks(rank);
    }
  }
  *table.mutable_spec() = spec;
  table.set_threads(plan.threads);
  return table;
}

}  // namespace moesaic
