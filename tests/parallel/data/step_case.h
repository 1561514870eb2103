// A step of gradients for the tests of both kinds: parameters, leaves that depend on (parameter,
// use, micro-batch) only, and layouts that divide them among ranks.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "parallel/data/gradients.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "parallel/layout/micro_batch_plan.h"

namespace moesaic {

// Dense 0, 2, 5 (used twice), experts 1, 3, 4, 6 of one layer in that order. Odd sizes, so that
// views are padded.
inline constexpr int kParameters = 7;
inline constexpr int kExpertOf[kParameters] = {-1, 0, -1, 1, 2, -1, 3};
inline constexpr int64_t kElements[kParameters] = {33, 70, 5, 70, 70, 129, 70};
inline constexpr int kUses[kParameters] = {1, 1, 1, 1, 1, 2, 1};

struct StepLayout {
  int ranks = 1;
  int expert_size = 1;  // divides ranks
};

inline std::vector<StepLayout> StepLayouts() {
  std::vector<StepLayout> layouts;
  for (int ranks : {1, 2, 3, 4, 6, 8}) {
    for (int ep = 1; ep <= ranks; ++ep) {
      if (ranks % ep == 0) layouts.push_back({ranks, ep});
    }
  }
  return layouts;
}

inline std::vector<HeldParameter> StepParameters(const StepLayout& layout) {
  const Mesh mesh = Mesh::Flat(layout.ranks, layout.expert_size);
  const std::vector<int> layers{4};
  const ExpertPlacement placement = ExpertPlacement::Even(mesh, layers);
  std::vector<HeldParameter> parameters;
  for (int p = 0; p < kParameters; ++p) {
    parameters.push_back({kElements[p], kUses[p]});
    if (kExpertOf[p] >= 0) {
      parameters.back().holders = mesh.DataOf(placement.holders(0, kExpertOf[p]));
    }
  }
  return parameters;
}

// Whether expert parameter `p` gets rows in the micro-batch at all.
inline bool HasRows(int p, int64_t micro_batch) {
  return kExpertOf[p] < 0 || (micro_batch * 5 + p * 3) % 4 != 0;
}

// A leaf of widely spread sizes, so that any other order of additions shows in the bits. Some
// elements are -0, which adding a zero leaf would change.
inline at::Tensor StepLeaf(int p, int use, int64_t micro_batch) {
  at::Tensor leaf = at::zeros({kElements[p]}, at::kFloat);
  if (!HasRows(p, micro_batch)) return leaf;
  std::mt19937 random(static_cast<uint32_t>(p * 1000 + use * 100 + micro_batch + 1));
  std::normal_distribution<float> normal(0, 1);
  float* out = leaf.data_ptr<float>();
  for (int64_t i = 0; i < kElements[p]; ++i) {
    out[i] = i % 16 == 5 ? -0.0f : normal(random) * std::exp2(static_cast<float>(random() % 16));
  }
  return leaf;
}

// The micro-batches whose leaves of `p` rank `rank` computes: its own of a dense parameter, those
// of its expert group of an expert it holds.
inline std::vector<int64_t> MicroBatchesOf(const StepLayout& layout, const HeldParameter& parameter,
                                           int rank, int64_t micro_batches) {
  if (!IsHeldBy(parameter, rank)) return {};
  const MicroBatchPlan plan{micro_batches, layout.ranks};
  const int group = rank / layout.expert_size;
  const int first = IsDense(parameter) ? rank : group * layout.expert_size;
  const int last = IsDense(parameter) ? rank : first + layout.expert_size - 1;
  std::vector<int64_t> ids;
  for (int64_t id = plan.begin(first); id < plan.end(last); ++id) ids.push_back(id);
  return ids;
}

}  // namespace moesaic
