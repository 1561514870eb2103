#include "scheduler/state/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "parallel/layout/balanced_placement.h"
#include "parallel/layout/micro_batch_plan.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/catalog/sizing.h"

namespace moesaic {
namespace {

// Another placement than the even one, or more copies, must take this much off the busiest rank.
constexpr double kWorthwhile = 0.98;
// Of a node's memory; the rest is the system's.
constexpr double kUsableMemory = 0.9;

int64_t Rounds(const JobSpec& spec, uint32_t ranks) {
  const int64_t micro_batches = spec.train().global_batch() / spec.train().micro_batch();
  return MicroBatchPlan{micro_batches, static_cast<int>(ranks)}.rounds();
}

// How many nodes a job may have: its own range, or what `resize` asked for.
struct NodeLimits {
  uint32_t min = 0;
  uint32_t max = 0;
};

NodeLimits LimitsOf(const PlanInput& input) {
  const NodeRange& nodes = input.spec->elastic().nodes();
  return {input.min_nodes > 0 ? input.min_nodes : nodes.min(),
          input.max_nodes > 0 ? input.max_nodes : nodes.max()};
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

absl::Status TooFewNodes(const JobSpec& spec, uint32_t min, size_t usable,
                         const std::vector<SpareNode>& spares) {
  std::string message = fmt::format("{} of at least {} nodes with {} slots", usable, min,
                                    spec.elastic().slots_per_node());
  for (const SpareNode& spare : spares) message += "; " + spare.reason;
  return absl::FailedPreconditionError(message);
}

// A number of nodes that may be used.
struct Candidate {
  uint32_t nodes = 0;
  uint32_t degree = 1;
  int64_t rounds = 0;
};

// The legal ones from `min` to `usable`, the best first: few rounds, then few nodes.
std::vector<Candidate> Candidates(const JobSpec& spec, uint32_t min, uint32_t usable) {
  const uint32_t slots = spec.elastic().slots_per_node();
  std::vector<Candidate> candidates;
  for (uint32_t n = min; n <= usable; ++n) {
    const std::optional<uint32_t> degree = ExpertDegree(spec, n * slots);
    if (degree) candidates.push_back({n, *degree, Rounds(spec, n * slots)});
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.rounds < b.rounds; });
  return candidates;
}

// The first `count` nodes: those of the last generation on their old places as far as there are
// such places, and the others, by id, on the places that are free. The rest follows by id.
void Arrange(const std::vector<std::string>& previous, uint32_t count,
             std::vector<PlanNode>* nodes) {
  std::map<std::string, size_t> old_place;
  for (size_t i = 0; i < previous.size(); ++i) old_place.emplace(previous[i], i);
  const auto place = [&](const PlanNode& node) {
    const auto found = old_place.find(node.id);
    return found == old_place.end() ? previous.size() : found->second;
  };
  std::sort(nodes->begin(), nodes->end(), [&](const PlanNode& a, const PlanNode& b) {
    return std::make_pair(place(a), a.id) < std::make_pair(place(b), b.id);
  });
  std::vector<std::optional<PlanNode>> used(count);
  std::vector<PlanNode> moved;
  for (uint32_t i = 0; i < count; ++i) {
    PlanNode& node = (*nodes)[i];
    const size_t at = place(node);
    if (at < std::min<size_t>(count, previous.size())) {
      used[at] = std::move(node);
    } else {
      moved.push_back(std::move(node));
    }
  }
  auto next = moved.begin();
  for (uint32_t i = 0; i < count; ++i) {
    (*nodes)[i] = used[i] ? *std::move(used[i]) : std::move(*next++);
  }
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

bool KnowMemory(const std::vector<PlanNode>& nodes) {
  return !nodes.empty() &&
         std::all_of(nodes.begin(), nodes.end(),
                     [](const PlanNode& node) { return node.memory_bytes > 0; });
}

// What the restored state records; empty: nothing is known.
ExpertLoad LoadOf(const PlanInput& input) {
  return input.restored != nullptr ? RecordedLoad(input.spec->model(), *input.restored)
                                   : ExpertLoad();
}

bool IsBetter(const Mesh& mesh, const ExpertLoad& load, const ExpertPlacement& a,
              const ExpertPlacement& b) {
  const bool a_survives = a.SurvivesAnyNode(mesh), b_survives = b.SurvivesAnyNode(mesh);
  if (a_survives != b_survives) return a_survives;
  return ExpectedImbalance(mesh, a, load) < kWorthwhile * ExpectedImbalance(mesh, b, load);
}

absl::StatusOr<JobSize> SizeOf(const PlanInput& input, const Mesh& mesh,
                               const ExpertPlacement& placement, const ExpertLoad& load) {
  const uint64_t step = input.restored != nullptr ? input.restored->step() : 0;
  const absl::StatusOr<CatalogsAhead> catalogs = BuildCatalogsAhead(*input.spec, step);
  if (!catalogs.ok()) return catalogs.status();
  return SizeJob({.spec = input.spec,
                  .catalog = &catalogs->all,
                  .mesh = &mesh,
                  .placement = &placement,
                  .load = &load,
                  .before_spawn = catalogs->before_spawn ? &*catalogs->before_spawn : nullptr});
}

// What a node would need beyond what it has, in words; empty: nothing, or nobody knows.
std::string MissingMemory(const PlanInput& input, const std::vector<PlanNode>& nodes,
                          const Mesh& mesh, const ExpertPlacement& placement,
                          const ExpertLoad& load) {
  if (!KnowMemory(nodes)) return "";
  const absl::StatusOr<JobSize> size = SizeOf(input, mesh, placement, load);
  if (!size.ok()) return "";
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto most = static_cast<uint64_t>(size->nodes[i].most());
    if (static_cast<double>(most) <= kUsableMemory * static_cast<double>(nodes[i].memory_bytes)) {
      continue;
    }
    constexpr double kMiB = 1 << 20;
    return fmt::format(
        "{} would need about {:.0f} MiB and may use {:.0f} MiB ({:.0f}% of what it has)",
        nodes[i].id, static_cast<double>(most) / kMiB,
        kUsableMemory * static_cast<double>(nodes[i].memory_bytes) / kMiB, 100 * kUsableMemory);
  }
  return "";
}

std::string WhyPlaced(const Mesh& mesh, const ExpertLoad& load, const ExpertPlacement& even,
                      const ExpertPlacement& chosen) {
  const double before = ExpectedImbalance(mesh, even, load);
  const double after = ExpectedImbalance(mesh, chosen, load);
  std::string why =
      fmt::format("experts placed {}: the busiest rank takes {:.2f} of the mean",
                  load.empty() ? "evenly, no load is recorded yet" : "by recorded load", after);
  if (after < before) why += fmt::format(", {:.2f} if placed by number", before);
  return why;
}

// How many copies a rank may hold a layer, at most.
int MostCopies(const PlanInput& input, const std::vector<PlanNode>& nodes, const ExpertLoad& load) {
  const ParallelSpec& parallel = input.spec->parallel();
  if (parallel.has_expert_copies()) return static_cast<int>(parallel.expert_copies());
  return !load.empty() && KnowMemory(nodes) ? 1 : 0;
}

// Nodes and ranks of one candidate.
struct Arrangement {
  Candidate candidate;
  std::vector<PlanNode> nodes;  // the used ones first
  Mesh mesh;
};

Arrangement ArrangeFor(const PlanInput& input, std::vector<PlanNode> nodes,
                       const Candidate& candidate) {
  Arrange(input.previous_nodes, candidate.nodes, &nodes);
  const std::vector<PlanNode> used(nodes.begin(), nodes.begin() + candidate.nodes);
  Mesh mesh = *Mesh::Create(Places(used, input.spec->elastic().slots_per_node(), candidate.degree));
  return {candidate, std::move(nodes), std::move(mesh)};
}

// What was passed over for want of memory.
struct PassedOver {
  Candidate candidate;
  std::string missing;

  std::string Describe() const {
    return fmt::format("on {} node{}, with expert degree {}, {}", candidate.nodes,
                       candidate.nodes == 1 ? "" : "s", candidate.degree, missing);
  }
};

// The best candidate whose ranks fit into memory, experts placed evenly; the others are added to
// `passed`.
std::optional<Arrangement> Choose(const PlanInput& input, const std::vector<PlanNode>& nodes,
                                  const std::vector<Candidate>& candidates,
                                  const ExpertLoad& load, std::vector<PassedOver>* passed) {
  const std::vector<int> experts = ExpertsOfLayers(input.spec->model());
  for (const Candidate& candidate : candidates) {
    Arrangement arrangement = ArrangeFor(input, nodes, candidate);
    const std::vector<PlanNode> used(arrangement.nodes.begin(),
                                     arrangement.nodes.begin() + candidate.nodes);
    std::string missing =
        MissingMemory(input, used, arrangement.mesh,
                      ExpertPlacement::Even(arrangement.mesh, experts), load);
    if (missing.empty()) return arrangement;
    passed->push_back({candidate, std::move(missing)});
  }
  return std::nullopt;
}

absl::Status NoLegalNumber(const JobSpec& spec, uint32_t min, uint32_t usable) {
  return absl::InvalidArgumentError(fmt::format(
      "parallel.expert {} divides the ranks of no number of nodes from {} to {} with {} slots "
      "each; choose a divisor of the ranks, or leave it auto",
      spec.parallel().expert(), min, usable, spec.elastic().slots_per_node()));
}

absl::Status TooLittleMemory(const JobSpec& spec, const std::vector<PassedOver>& passed) {
  std::string message = "too little memory: ";
  for (size_t i = 0; i < passed.size(); ++i) {
    message += (i == 0 ? "" : "; ") + passed[i].Describe();
  }
  message += "; what helps: more nodes or larger ones, a smaller train.micro_batch";
  if (spec.model().has_moe() && spec.parallel().has_expert()) {
    message += ", a larger parallel.expert";
  }
  return absl::FailedPreconditionError(std::move(message));
}

// Why the arrangement's nodes are used and the one that would be number `number` (from 1) is not.
std::string WhySpare(const JobSpec& spec, const NodeLimits& limits, const Candidate& chosen,
                     uint32_t usable, uint32_t number, const std::vector<PassedOver>& passed) {
  if (number > limits.max) return fmt::format("the job takes at most {} nodes", limits.max);
  const uint32_t slots = spec.elastic().slots_per_node();
  for (const PassedOver& over : passed) {
    if (over.candidate.nodes >= number) return over.Describe();
  }
  for (uint32_t n = number; n <= usable; ++n) {
    if (!ExpertDegree(spec, n * slots)) continue;
    return fmt::format("{} nodes would need as many rounds of micro-batches a step ({}) as {}", n,
                       chosen.rounds, chosen.nodes);
  }
  return fmt::format("parallel.expert {} divides the ranks of {} nodes with {} slots, not of {}",
                     spec.parallel().expert(), chosen.nodes, slots, number);
}

std::vector<SpareNode> Spares(const JobSpec& spec, const NodeLimits& limits,
                              const Arrangement& chosen, uint32_t usable,
                              const std::vector<PassedOver>& passed) {
  std::vector<SpareNode> spares;
  for (uint32_t i = chosen.candidate.nodes; i < chosen.nodes.size(); ++i) {
    spares.push_back({chosen.nodes[i].id,
                      WhySpare(spec, limits, chosen.candidate, usable, i + 1, passed)});
  }
  return spares;
}

std::string WhyLayout(const JobSpec& spec, const NodeLimits& limits, const Candidate& chosen,
                      const std::vector<PassedOver>& passed) {
  std::string why = fmt::format(
      "{} of {} to {} nodes: {} micro-batches a step in {} round{}, and no legal number of the "
      "nodes that are there needs fewer",
      chosen.nodes, limits.min, limits.max,
      spec.train().global_batch() / spec.train().micro_batch(), chosen.rounds,
      chosen.rounds == 1 ? "" : "s");
  if (!passed.empty()) why += " and has the memory: " + passed.front().Describe();
  const uint32_t ranks = chosen.nodes * spec.elastic().slots_per_node();
  if (spec.model().has_moe() && !spec.parallel().has_expert() && chosen.degree == 1 && ranks > 1) {
    why += fmt::format("; every rank holds all {} experts, because {} ranks have no divisor from 2 "
                       "to {} that could share them",
                       spec.model().moe().experts(), ranks, spec.model().moe().experts());
  }
  return why;
}

}  // namespace

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

PlacedExperts PlaceExperts(const PlanInput& input, const std::vector<PlanNode>& nodes,
                           const Mesh& mesh) {
  const JobSpec& spec = *input.spec;
  const ExpertLoad load = LoadOf(input);
  std::string refused;
  if (input.restored != nullptr && !input.move_experts) {
    auto kept = KeptPlacement(spec, mesh, input.restored->placement(), input.placement_epoch);
    if (kept.ok()) {
      const std::string missing = MissingMemory(input, nodes, mesh, *kept, load);
      if (missing.empty()) return {*std::move(kept), true, "experts stay where they were"};
      refused = fmt::format("; they do not stay where they were, {}", missing);
    }
  }
  const std::vector<int> experts = ExpertsOfLayers(spec.model());
  const ExpertPlacement even = ExpertPlacement::Even(mesh, experts, input.placement_epoch);
  ExpertPlacement chosen = even;
  for (int copies = 0; copies <= MostCopies(input, nodes, load); ++copies) {
    ExpertPlacement balanced = BalancedPlacement({.mesh = &mesh,
                                                  .experts = experts,
                                                  .load = &load,
                                                  .copies = copies,
                                                  .epoch = input.placement_epoch});
    if (!IsBetter(mesh, load, balanced, chosen)) continue;
    const std::string missing = MissingMemory(input, nodes, mesh, balanced, load);
    if (!missing.empty()) {
      refused += copies == 0 ? fmt::format("; not by load, {}", missing)
                             : fmt::format("; no more copies of experts, {}", missing);
      break;
    }
    chosen = std::move(balanced);
  }
  std::string reason = WhyPlaced(mesh, load, even, chosen) + refused;
  return {std::move(chosen), false, std::move(reason)};
}

absl::StatusOr<GenerationPlan> PlanGeneration(const PlanInput& input) {
  const JobSpec& spec = *input.spec;
  const NodeLimits limits = LimitsOf(input);
  std::vector<PlanNode> nodes = input.nodes;
  std::vector<SpareNode> spares = TakeUnusable(spec, &nodes);
  if (nodes.size() < limits.min) return TooFewNodes(spec, limits.min, nodes.size(), spares);

  const uint32_t usable = std::min(static_cast<uint32_t>(nodes.size()), limits.max);
  const std::vector<Candidate> candidates = Candidates(spec, limits.min, usable);
  if (candidates.empty()) return NoLegalNumber(spec, limits.min, usable);
  const ExpertLoad load = LoadOf(input);
  std::vector<PassedOver> passed;
  std::optional<Arrangement> chosen = Choose(input, nodes, candidates, load, &passed);
  if (!chosen) return TooLittleMemory(spec, passed);
  const Candidate& candidate = chosen->candidate;
  for (SpareNode& spare : Spares(spec, limits, *chosen, usable, passed)) {
    spares.push_back(std::move(spare));
  }
  std::sort(spares.begin(), spares.end(),
            [](const SpareNode& a, const SpareNode& b) { return a.id < b.id; });
  chosen->nodes.resize(candidate.nodes);

  PlacedExperts experts = PlaceExperts(input, chosen->nodes, chosen->mesh);
  std::string reason = WhyLayout(spec, limits, candidate, passed);
  if (candidate.degree > 1) reason += "; " + experts.reason;
  const uint32_t threads = Threads(spec, chosen->nodes);
  std::string layout = fmt::format("{} node{}, data {}, expert {}, {} thread{} a rank",
                                   candidate.nodes, candidate.nodes == 1 ? "" : "s",
                                   chosen->mesh.size(), candidate.degree, threads,
                                   threads == 1 ? "" : "s");
  const bool survives = experts.placement.SurvivesAnyNode(chosen->mesh);
  const double imbalance = ExpectedImbalance(chosen->mesh, experts.placement, load);
  return GenerationPlan{.nodes = std::move(chosen->nodes),
                        .spares = std::move(spares),
                        .mesh = std::move(chosen->mesh),
                        .placement = std::move(experts.placement),
                        .threads = threads,
                        .rounds = candidate.rounds,
                        .survives_any_node = survives,
                        .kept_placement = experts.kept,
                        .imbalance = imbalance,
                        .layout = std::move(layout),
                        .reason = std::move(reason)};
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
