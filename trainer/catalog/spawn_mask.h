// Masks of experts that are made of one (EvoMoE, arXiv 2112.14397: "expert-diversify"): each expert
// is a copy in which another random share of the weights is zero.
#pragma once

#include <cstdint>
#include <span>

#include "absl/strings/string_view.h"

namespace moesaic {

struct SpawnMask {
  uint64_t seed = 0;      // of the run
  double share = 0;       // rho: of zeros; 0 changes nothing
  bool rescale = false;   // divide what is left by 1 - share
};

// Masks elements [first, first + values.size()) of an expert's parameter, counted row-major in its
// whole shape. Whether element i stays depends on (seed, name, i) alone, and the name has the
// layer, the expert's number and the matrix: so any rank can make any part, and layouts do not
// matter. `name`: as in the catalogue ("layers.3.moe.experts.17.down"). To mask moments alike, call
// it without `rescale`. Thread-safe.
void ApplySpawnMask(const SpawnMask& mask, absl::string_view name, uint64_t first,
                    std::span<float> values);

}  // namespace moesaic
