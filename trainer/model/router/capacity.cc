#include "trainer/model/router/capacity.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace moesaic {

int64_t BinCapacity(double factor, int64_t tokens, int64_t active, int64_t bins) {
  const double pairs = static_cast<double>(tokens) * static_cast<double>(active);
  return static_cast<int64_t>(std::ceil(factor * pairs / static_cast<double>(bins)));
}

int64_t DropBeyondCapacity(const CapacityLimit& limit, const at::Tensor& scores,
                           at::Tensor& selected) {
  const int64_t experts = scores.size(1);
  const int64_t active = selected.size(1);
  int64_t* ids = selected.data_ptr<int64_t>();
  const float* score = scores.const_data_ptr<float>();
  std::vector<std::vector<int64_t>> droppable(limit.bins);  // pairs of each bin, in token order
  std::vector<int64_t> room(limit.bins, limit.capacity);
  for (int64_t pair = 0; pair < selected.numel(); ++pair) {
    if (ids[pair] < 0) continue;
    const int64_t bin = ids[pair] * limit.bins / experts;
    if (!limit.exempt.empty() && limit.exempt[pair / active]) {
      --room[bin];
    } else {
      droppable[bin].push_back(pair);
    }
  }
  int64_t dropped = 0;
  for (int64_t bin = 0; bin < limit.bins; ++bin) {
    std::vector<int64_t>& pairs = droppable[bin];
    if (limit.order == LOWEST) {
      std::ranges::stable_sort(pairs, std::greater(), [&](int64_t pair) {
        return score[pair / active * experts + ids[pair]];
      });
    }
    for (size_t i = std::max<int64_t>(0, room[bin]); i < pairs.size(); ++i, ++dropped) {
      ids[pairs[i]] = -1;
    }
  }
  return dropped;
}

}  // namespace moesaic
