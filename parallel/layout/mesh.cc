#include "parallel/layout/mesh.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace moesaic {
namespace {

constexpr int kFree = -1;

// Puts `rank` at `slot` of `taken`, which must be free and exist.
absl::Status Take(std::vector<int>& taken, int slot, int rank, absl::string_view axis) {
  if (slot < 0 || slot >= static_cast<int>(taken.size())) {
    return absl::InvalidArgumentError(absl::StrCat("[mesh] rank ", rank, " has ", axis,
                                                   " coordinate ", slot, ", outside 0..",
                                                   taken.size() - 1, ": check the rank table"));
  }
  if (taken[slot] != kFree) {
    return absl::InvalidArgumentError(absl::StrCat("[mesh] ranks ", taken[slot], " and ", rank,
                                                   " both have ", axis, " coordinate ", slot,
                                                   ": check the rank table"));
  }
  taken[slot] = rank;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Mesh> Mesh::Create(std::vector<RankPlace> places) {
  if (places.empty()) return absl::InvalidArgumentError("[mesh] the rank table is empty");
  std::sort(places.begin(), places.end(),
            [](const RankPlace& a, const RankPlace& b) { return a.rank < b.rank; });
  const int n = static_cast<int>(places.size());
  int groups = 0;
  for (int r = 0; r < n; ++r) {
    if (places[r].rank != r) {
      return absl::InvalidArgumentError(
          absl::StrCat("[mesh] the rank table has ", n, " rows but not the ranks 0..", n - 1,
                       ": rank ", places[r].rank, " stands where ", r, " is expected"));
    }
    groups = std::max(groups, places[r].expert_group + 1);
  }
  if (groups < 1 || groups > n || n % groups != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("[mesh] ", n, " ranks cannot form ", groups, " expert groups of one size"));
  }
  Mesh mesh;
  mesh.expert_size_ = n / groups;
  mesh.data_ranks_.assign(n, kFree);
  mesh.expert_ranks_.assign(groups, std::vector<int>(mesh.expert_size_, kFree));
  for (const RankPlace& place : places) {
    absl::Status taken = Take(mesh.data_ranks_, place.data, place.rank, "data");
    if (taken.ok() && place.expert_group < 0) {
      taken = absl::InvalidArgumentError(
          absl::StrCat("[mesh] rank ", place.rank, " has expert group ", place.expert_group));
    }
    if (taken.ok()) {
      taken = Take(mesh.expert_ranks_[place.expert_group], place.expert, place.rank,
                   absl::StrCat("expert group ", place.expert_group, " expert"));
    }
    if (!taken.ok()) return taken;
  }
  mesh.places_ = std::move(places);
  return mesh;
}

Mesh Mesh::Flat(int n, int expert_size) {
  if (n < 1 || expert_size < 1 || n % expert_size != 0) {
    LogError("[mesh] groups of {} ranks do not divide {} ranks", expert_size, n);
    std::abort();
  }
  std::vector<RankPlace> places(n);
  for (int r = 0; r < n; ++r) {
    places[r] = {.rank = r,
                 .node = "local",
                 .local_rank = r,
                 .data = r,
                 .expert_group = r / expert_size,
                 .expert = r % expert_size};
  }
  return *Create(std::move(places));
}

std::vector<int> Mesh::DataOf(std::span<const int> ranks) const {
  std::vector<int> data;
  for (int rank : ranks) data.push_back(place(rank).data);
  return data;
}

}  // namespace moesaic
