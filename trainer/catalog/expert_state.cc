#include "trainer/catalog/expert_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/job_spec.h"

namespace moesaic {
namespace {

constexpr double kNewWeight = 1.0 / 64;
constexpr double kMostTokens = 1e18;  // of one expert in a step: more is damage

uint32_t RanksPerNode(const Mesh& mesh) {
  uint32_t ranks = 0;
  while (ranks < static_cast<uint32_t>(mesh.size()) &&
         mesh.place(static_cast<int>(ranks)).node == mesh.place(0).node) {
    ++ranks;
  }
  return ranks;
}

// The shape that a placement was made for.
bool FitsShape(const JobSpec& spec, const Mesh& mesh, const StoredPlacement& stored) {
  return stored.ranks() == static_cast<uint32_t>(mesh.size()) &&
         stored.expert_size() == static_cast<uint32_t>(mesh.expert_size()) &&
         stored.ranks_per_node() == RanksPerNode(mesh) &&
         stored.has_expert_copies() == spec.parallel().has_expert_copies() &&
         stored.expert_copies() == spec.parallel().expert_copies();
}

}  // namespace

std::vector<int> ExpertsOfLayers(const ModelSpec& model) {
  std::vector<int> experts;
  for (uint32_t layer = 0; layer < model.layers(); ++layer) {
    experts.push_back(
        IsMoeLayer(model, static_cast<int>(layer)) ? static_cast<int>(model.moe().experts()) : 0);
  }
  return experts;
}

void RecordExpertCounts(int layer, std::span<const double> counts, TrainingState* state) {
  LayerLoad* load = nullptr;
  for (LayerLoad& known : *state->mutable_expert_load()) {
    if (known.layer() == static_cast<uint32_t>(layer)) load = &known;
  }
  if (load == nullptr) {
    load = state->add_expert_load();
    load->set_layer(static_cast<uint32_t>(layer));
    load->mutable_tokens()->Assign(counts.begin(), counts.end());
    return;
  }
  for (int e = 0; e < load->tokens_size(); ++e) {
    const double old = load->tokens(e);
    load->set_tokens(e, old + (counts[static_cast<size_t>(e)] - old) * kNewWeight);
  }
}

ExpertLoad RecordedLoad(const ModelSpec& model, const TrainingState& state) {
  const std::vector<int> experts = ExpertsOfLayers(model);
  ExpertLoad load(experts.size());
  for (const LayerLoad& layer : state.expert_load()) {
    if (layer.layer() >= load.size()) return {};
    load[layer.layer()].assign(layer.tokens().begin(), layer.tokens().end());
  }
  for (size_t layer = 0; layer < load.size(); ++layer) {
    if (load[layer].size() != static_cast<size_t>(experts[layer])) return {};
    for (const double tokens : load[layer]) {
      if (!(tokens >= 0 && tokens <= kMostTokens)) return {};
    }
  }
  return load;
}

StoredPlacement StorePlacement(const JobSpec& spec, const Mesh& mesh,
                               const ExpertPlacement& placement) {
  StoredPlacement stored;
  stored.set_ranks(static_cast<uint32_t>(mesh.size()));
  stored.set_expert_size(static_cast<uint32_t>(mesh.expert_size()));
  stored.set_ranks_per_node(RanksPerNode(mesh));
  if (spec.parallel().has_expert_copies()) {
    stored.set_expert_copies(spec.parallel().expert_copies());
  }
  for (int layer = 0; layer < placement.layers(); ++layer) {
    for (int expert = 0; expert < placement.experts(layer); ++expert) {
      const std::span<const int> holders = placement.holders(layer, expert);
      stored.add_holders(static_cast<uint32_t>(holders.size()));
      for (const int rank : holders) stored.add_holders(static_cast<uint32_t>(rank));
    }
  }
  return stored;
}

absl::StatusOr<ExpertPlacement> KeptPlacement(const JobSpec& spec, const Mesh& mesh,
                                              const StoredPlacement& stored, uint64_t epoch) {
  if (!FitsShape(spec, mesh, stored)) {
    return absl::NotFoundError("[placement] the stored one is of another layout");
  }
  const auto damaged = [] {
    return absl::InvalidArgumentError("[placement] the stored one does not fit the model");
  };
  std::vector<std::vector<std::vector<int>>> holders;
  int next = 0;
  for (const int experts : ExpertsOfLayers(spec.model())) {
    holders.emplace_back(experts);
    for (std::vector<int>& ranks : holders.back()) {
      if (next >= stored.holders_size()) return damaged();
      const uint32_t count = stored.holders(next++);
      if (count > static_cast<uint32_t>(stored.holders_size() - next)) return damaged();
      const auto begin = stored.holders().begin() + next;
      ranks.assign(begin, begin + static_cast<int>(count));
      next += static_cast<int>(count);
    }
  }
  if (next != stored.holders_size()) return damaged();
  return ExpertPlacement::Create(mesh, epoch, std::move(holders));
}

}  // namespace moesaic
