#include "trainer/model/router/observe.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "trainer/model/router/entropy.h"

namespace moesaic {
namespace {

// [k]: tokens that chose k of the experts.
std::vector<int64_t> FanOut(const at::Tensor& selected, int64_t experts) {
  const int64_t most = selected.size(1);
  const int64_t* ids = selected.const_data_ptr<int64_t>();
  std::vector<int64_t> tokens(std::min(most, experts) + 1);
  for (int64_t t = 0; t < selected.size(0); ++t) {
    int64_t active = 0;
    for (int64_t k = 0; k < most; ++k) active += ids[t * most + k] >= 0;
    ++tokens[active];
  }
  return tokens;
}

std::vector<int32_t> BestOf(const Routing& routing, int64_t experts) {
  const at::Tensor& selected = routing.selected;
  const int64_t most = selected.size(1);
  const int64_t* ids = selected.const_data_ptr<int64_t>();
  const float* scores = routing.scores.const_data_ptr<float>();
  std::vector<int32_t> best(selected.size(0), static_cast<int32_t>(experts));
  for (int64_t t = 0; t < selected.size(0); ++t) {
    float highest = -1;
    for (int64_t k = 0; k < most; ++k) {
      const int64_t id = ids[t * most + k];
      if (id < 0) continue;
      const float score = scores[t * routing.scores.size(1) + id];
      if (score > highest) best[t] = static_cast<int32_t>(id);
      highest = std::max(highest, score);
    }
  }
  return best;
}

}  // namespace

LayerRouting Observe(const Routing& routing, bool best) {
  const auto experts = static_cast<int64_t>(routing.counts.size());
  const std::vector<double> entropies = Entropies(routing.scores);
  const double entropy = std::accumulate(entropies.begin(), entropies.end(), 0.0);
  LayerRouting seen;
  seen.counts = routing.counts;
  seen.fan_out = FanOut(routing.selected, experts);
  seen.nulls = routing.nulls;
  seen.dropped = routing.dropped;
  seen.entropy = std::llround(entropy * kEntropyUnit);
  if (best) seen.best = BestOf(routing, experts);
  return seen;
}

}  // namespace moesaic
