#include "trainer/model/router/entropy.h"

#include <cmath>

#include "trainer/model/router/rows.h"

namespace moesaic {
namespace {

// With p = s / S: log S - sum_i s_i log s_i / S.
double EntropyOf(std::span<const float> scores) {
  double sum = 0, inner = 0;
  for (const float s : scores) {
    if (!(s > 0)) continue;
    sum += s;
    inner += s * std::log(s);
  }
  return sum > 0 ? std::log(sum) - inner / sum : 0;
}

}  // namespace

std::vector<double> Entropies(const at::Tensor& scores) {
  std::vector<double> entropies(scores.size(0));
  ParallelFor(scores.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) entropies[row] = EntropyOf(RowOf(scores, row));
  });
  return entropies;
}

}  // namespace moesaic
