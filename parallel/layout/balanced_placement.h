// Where experts go when it is known, or assumed, how many tokens each takes. Pure and
// deterministic.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/layout/expert_load.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"

namespace moesaic {

struct BalanceInput {
  const Mesh* mesh = nullptr;
  std::span<const int> experts = {};  // by layer; 0: a dense one
  const ExpertLoad* load = nullptr;   // of the same shape, or empty
  // Experts of a layer that a rank may hold beyond its share, as copies of others of its group.
  int copies = 0;
  uint64_t epoch = 0;
};

// In each expert group, experts go, the busiest first, to the rank with the fewest tokens so far in
// that layer (longest processing time first). Over the layers up to any one, and without its
// copies, no rank holds more than one expert beyond the mean (rounded up), so memory stays even.
// All groups are alike.
//
// Copies go first to experts that live on one node only, on another node of the group, then to
// those that take most from the busiest rank, wherever that rank's tokens get fewer.
//
// Primaries are spread so that ranks own about as many experts each.
ExpertPlacement BalancedPlacement(const BalanceInput& input);

// Tokens that each rank's experts of a layer take in a step, when every rank brings equally many.
std::vector<double> ExpectedTokens(const Mesh& mesh, const ExpertPlacement& placement, int layer,
                                   const ExpertLoad& load);

// Tokens of the busiest rank over the mean, added up over the layers (which wait for one another):
// 1 is perfect. 1 without experts.
double ExpectedImbalance(const Mesh& mesh, const ExpertPlacement& placement,
                         const ExpertLoad& load);

}  // namespace moesaic
