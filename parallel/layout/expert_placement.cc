#include "parallel/layout/expert_placement.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace moesaic {
namespace {

absl::Status CheckHolders(const Mesh& mesh, absl::string_view expert,
                          const std::vector<int>& holders) {
  if (holders.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("[placement] ", expert, " has no holder"));
  }
  std::vector<bool> seen(mesh.size(), false);
  std::vector<bool> group_holds(mesh.expert_groups(), false);
  for (int rank : holders) {
    if (rank < 0 || rank >= mesh.size()) {
      return absl::InvalidArgumentError(absl::StrCat("[placement] ", expert, " is held by rank ",
                                                     rank, ", outside 0..", mesh.size() - 1));
    }
    if (seen[rank]) {
      return absl::InvalidArgumentError(
          absl::StrCat("[placement] ", expert, " names rank ", rank, " twice"));
    }
    seen[rank] = true;
    group_holds[mesh.place(rank).expert_group] = true;
  }
  for (int g = 0; g < mesh.expert_groups(); ++g) {
    if (!group_holds[g]) {
      return absl::InvalidArgumentError(absl::StrCat("[placement] ", expert,
                                                     " has no holder in expert group ", g,
                                                     ": its tokens would have nowhere to go"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ExpertPlacement> ExpertPlacement::Create(
    const Mesh& mesh, uint64_t epoch, std::vector<std::vector<std::vector<int>>> holders) {
  for (size_t layer = 0; layer < holders.size(); ++layer) {
    for (size_t expert = 0; expert < holders[layer].size(); ++expert) {
      absl::Status checked = CheckHolders(mesh, absl::StrCat("layer ", layer, " expert ", expert),
                                          holders[layer][expert]);
      if (!checked.ok()) return checked;
    }
  }
  ExpertPlacement placement;
  placement.epoch_ = epoch;
  placement.holders_ = std::move(holders);
  return placement;
}

ExpertPlacement ExpertPlacement::Even(const Mesh& mesh, std::span<const int> experts,
                                      uint64_t epoch) {
  const int groups = mesh.expert_groups();
  ExpertPlacement placement;
  placement.epoch_ = epoch;
  placement.holders_.resize(experts.size());
  for (size_t layer = 0; layer < experts.size(); ++layer) {
    placement.holders_[layer].resize(experts[layer]);
    for (int e = 0; e < experts[layer]; ++e) {
      const int coordinate =
          static_cast<int>(static_cast<int64_t>(e) * mesh.expert_size() / experts[layer]);
      for (int g = 0; g < groups; ++g) {
        placement.holders_[layer][e].push_back(mesh.expert_ranks((e + g) % groups)[coordinate]);
      }
    }
  }
  return placement;
}

bool ExpertPlacement::Holds(int rank, int layer, int expert) const {
  const std::vector<int>& ranks = holders_[layer][expert];
  return std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
}

std::vector<int> ExpertPlacement::ExpertsOf(int rank, int layer) const {
  std::vector<int> held;
  for (int e = 0; e < experts(layer); ++e) {
    if (Holds(rank, layer, e)) held.push_back(e);
  }
  return held;
}

int ExpertPlacement::Destination(const Mesh& mesh, int source, int layer, int expert) const {
  const int group = mesh.place(source).expert_group;
  absl::InlinedVector<int, 4> holders;
  for (int rank : holders_[layer][expert]) {
    if (mesh.place(rank).expert_group == group) holders.push_back(rank);
  }
  if (holders.empty()) {
    LogError(
        "[placement] layer {} expert {} has no holder in expert group {} of rank {}: the "
        "placement was made for another mesh",
        layer, expert, group, source);
    std::abort();
  }
  return NearestHolder(mesh, source, holders);
}

bool ExpertPlacement::SurvivesAnyNode(const Mesh& mesh) const {
  for (const auto& layer : holders_) {
    for (const std::vector<int>& holders : layer) {
      const std::string& node = mesh.place(holders.front()).node;
      if (std::all_of(holders.begin(), holders.end(),
                      [&](int rank) { return mesh.place(rank).node == node; })) {
        return false;
      }
    }
  }
  return true;
}

int NearestHolder(const Mesh& mesh, int source, std::span<const int> holders) {
  if (holders.size() == 1) return holders.front();
  if (std::find(holders.begin(), holders.end(), source) != holders.end()) return source;
  const RankPlace& from = mesh.place(source);
  absl::InlinedVector<int, 4> nearest;
  for (int rank : holders) {
    if (mesh.place(rank).node == from.node) nearest.push_back(rank);
  }
  if (nearest.empty()) nearest.assign(holders.begin(), holders.end());
  std::sort(nearest.begin(), nearest.end(),
            [&](int a, int b) { return mesh.place(a).expert < mesh.place(b).expert; });
  return nearest[static_cast<size_t>(from.expert) % nearest.size()];
}

}  // namespace moesaic
