// LayerRouting: what the router of one layer did with tokens, as whole numbers, so that sums over
// micro-batches and ranks are exact in any order.
#pragma once

#include <cstdint>
#include <vector>

namespace moesaic {

// One nat of LayerRouting::entropy.
inline constexpr double kEntropyUnit = 1 << 20;

struct LayerRouting {
  std::vector<int64_t> counts = {};   // by expert of the pool: chosen pairs, before any drop
  std::vector<int64_t> fan_out = {};  // [k]: tokens that chose k experts, null experts apart
  int64_t nulls = 0;             // chosen pairs with a null expert
  int64_t dropped = 0;           // pairs beyond capacity
  int64_t wire_rows = 0;         // pairs whose expert another rank computes
  // Of the tokens' probabilities over the experts, summed over tokens, in 1 / kEntropyUnit nats.
  int64_t entropy = 0;
  // By token: the expert it likes most of those it chose, the size of the pool where it chose none.
  std::vector<int32_t> best = {};
};

// Numbers of one layer whose largest pool has `experts`, `best` apart.
constexpr int64_t LayerRoutingWords(int64_t experts) { return experts + (experts + 1) + 4; }

}  // namespace moesaic
