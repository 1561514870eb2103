// ExpertPlacement: which ranks hold which expert. Uneven is legal (the expert degree need not
// divide the number of experts), several holders are legal. The first holder is the **primary**: it
// owns the expert's master weights and moments, counts in the gradient norm, steps, writes the
// checkpoint, and sends compute weights to the other holders.
//
// Moving, cloning, evicting and losing an expert are one change of this map, with a new epoch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/layout/mesh.h"

namespace moesaic {

// Immutable; thread-safe.
class ExpertPlacement {
 public:
  // Holders of every expert of every layer: holders[layer][expert] = ranks, primary first. A dense
  // layer has an empty list. InvalidArgument unless every expert has at least one holder, no rank
  // twice, and every expert group of the mesh holds every expert.
  static absl::StatusOr<ExpertPlacement> Create(const Mesh& mesh, uint64_t epoch,
                                                std::vector<std::vector<std::vector<int>>> holders);

  // The default: in each expert group, expert e of E lies on coordinate floor(e * size / E), so
  // that counts differ by at most one; primaries rotate over the groups by expert id.
  // `experts[layer]` is the number of experts of the layer, 0 for a dense one.
  static ExpertPlacement Even(const Mesh& mesh, std::span<const int> experts, uint64_t epoch = 0);

  uint64_t epoch() const { return epoch_; }
  int layers() const { return static_cast<int>(holders_.size()); }
  int experts(int layer) const { return static_cast<int>(holders_[layer].size()); }

  std::span<const int> holders(int layer, int expert) const { return holders_[layer][expert]; }
  int primary(int layer, int expert) const { return holders_[layer][expert].front(); }
  bool Holds(int rank, int layer, int expert) const;
  // Experts of a layer that `rank` holds, ascending.
  std::vector<int> ExpertsOf(int rank, int layer) const;
  // The rank that computes expert `expert` for tokens of `source`: NearestHolder among its holders
  // in the expert group of `source`. A micro-batch has one source, so its rows of an expert are
  // never split.
  int Destination(const Mesh& mesh, int source, int layer, int expert) const;
  // Whether every expert has holders on two nodes.
  bool SurvivesAnyNode(const Mesh& mesh) const;

 private:
  uint64_t epoch_ = 0;
  std::vector<std::vector<std::vector<int>>> holders_;
};

// Of `holders`, none of which is in another expert group than `source`, the one that serves it:
// itself, else one on its node, else any; where several are as near, sources take turns by their
// coordinate. `holders` in any order, not empty.
int NearestHolder(const Mesh& mesh, int source, std::span<const int> holders);

}  // namespace moesaic
