#include "trainer/model/pair_sort.h"

#include <ATen/ATen.h>

#include <numeric>

#include "trainer/model/router/select.h"

namespace moesaic {

SortedPairs SortByExpert(const at::Tensor& expert, int64_t experts) {
  SortedPairs sorted;
  sorted.counts = CountByExpert(expert, experts);
  std::vector<int64_t> next(experts);
  std::exclusive_scan(sorted.counts.begin(), sorted.counts.end(), next.begin(), int64_t{0});
  const int64_t pairs = std::accumulate(sorted.counts.begin(), sorted.counts.end(), int64_t{0});
  sorted.token = at::empty({pairs}, at::kLong);
  sorted.position = at::empty_like(expert);
  const int64_t* ids = expert.const_data_ptr<int64_t>();
  int64_t* token = sorted.token.data_ptr<int64_t>();
  int64_t* position = sorted.position.data_ptr<int64_t>();
  const int64_t fan_out = expert.size(1);
  for (int64_t t = 0; t < expert.size(0); ++t) {
    for (int64_t pair = t * fan_out; pair < (t + 1) * fan_out; ++pair) {
      position[pair] = ids[pair] < 0 ? -1 : next[ids[pair]]++;
      if (position[pair] >= 0) token[position[pair]] = t;
    }
  }
  return sorted;
}

}  // namespace moesaic
