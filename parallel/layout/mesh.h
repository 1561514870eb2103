// Mesh: which rank sits where. An immutable map between ranks and coordinates on named axes, built
// from the rank table that the coordinator issues, never recomputed from the MPI rank.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace moesaic {

// Where one rank sits. `data` numbers the copies of the dense part. The expert layout is folded
// into the data ranks: `expert_group` says which copy of the experts a data rank helps to hold,
// `expert` its coordinate within that copy.
struct RankPlace {
  int rank = 0;
  std::string node = {};
  int local_rank = 0;
  int data = 0;
  int expert_group = 0;
  int expert = 0;
};

// Immutable; thread-safe.
class Mesh {
 public:
  // `places` in any order. InvalidArgument unless ranks are 0..n-1, each (data) and each
  // (expert_group, expert) coordinate is taken once, and all groups have one size.
  static absl::StatusOr<Mesh> Create(std::vector<RankPlace> places);

  // n ranks on one node, rank = data, groups of `expert_size` consecutive ranks. CHECKs that
  // expert_size divides n. For tests and single-host runs.
  static Mesh Flat(int n, int expert_size);

  int size() const { return static_cast<int>(places_.size()); }
  const RankPlace& place(int rank) const { return places_[rank]; }

  // Ranks that together hold one copy of the experts, and how many such copies there are.
  int expert_size() const { return expert_size_; }
  int expert_groups() const { return size() / expert_size_; }

  // All ranks by `data` coordinate: members of the `data` communicator, in its order.
  std::span<const int> data_ranks() const { return data_ranks_; }
  // The data coordinates of `ranks`, in their order: what they are called in the `data`
  // communicator.
  std::vector<int> DataOf(std::span<const int> ranks) const;
  // The ranks of one copy of the experts by `expert` coordinate: members of an `expert`
  // communicator.
  std::span<const int> expert_ranks(int expert_group) const { return expert_ranks_[expert_group]; }

 private:
  std::vector<RankPlace> places_;
  std::vector<int> data_ranks_;
  std::vector<std::vector<int>> expert_ranks_;
  int expert_size_ = 1;
};

}  // namespace moesaic
