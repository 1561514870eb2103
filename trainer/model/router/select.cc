#include "trainer/model/router/select.h"

#include <ATen/ATen.h>

#include <cmath>

#include "trainer/model/router/rows.h"

namespace moesaic {
namespace {

// K is small, so K scans of a row beat a sort; a scan keeps the first of equal scores.
void TopKOfRow(std::span<const float> scores, std::span<int64_t> chosen) {
  for (size_t k = 0; k < chosen.size(); ++k) {
    const auto taken = chosen.first(k);
    int64_t best = -1;
    for (int64_t e = 0; e < static_cast<int64_t>(scores.size()); ++e) {
      if (best >= 0 && !(scores[e] > scores[best])) continue;
      if (std::find(taken.begin(), taken.end(), e) == taken.end()) best = e;
    }
    chosen[k] = best;
  }
}

}  // namespace

at::Tensor SelectTopK(const at::Tensor& scores, int64_t active) {
  TORCH_CHECK(active >= 1 && active <= scores.size(1), "router: top-", active, " of ",
              scores.size(1), " experts");
  at::Tensor selected = at::empty({scores.size(0), active}, at::kLong);
  int64_t* ids = selected.data_ptr<int64_t>();
  ParallelFor(scores.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      TopKOfRow(RowOf(scores, row), {ids + row * active, static_cast<size_t>(active)});
    }
  });
  return selected;
}

std::vector<int64_t> CountByExpert(const at::Tensor& selected, int64_t experts) {
  std::vector<int64_t> counts(experts);
  const int64_t* ids = selected.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < selected.numel(); ++i) {
    if (ids[i] >= 0) ++counts[ids[i]];
  }
  return counts;
}

int64_t ExpertCapacity(double factor, int64_t tokens, int64_t active, int64_t experts) {
  const double pairs = static_cast<double>(tokens) * static_cast<double>(active);
  return static_cast<int64_t>(std::ceil(factor * pairs / static_cast<double>(experts)));
}

int64_t DropBeyondCapacity(int64_t capacity, int64_t experts, at::Tensor& selected) {
  std::vector<int64_t> taken(experts);
  int64_t dropped = 0;
  int64_t* ids = selected.data_ptr<int64_t>();
  for (int64_t i = 0; i < selected.numel(); ++i) {
    if (ids[i] < 0 || taken[ids[i]]++ < capacity) continue;
    ids[i] = -1;
    ++dropped;
  }
  return dropped;
}

}  // namespace moesaic
