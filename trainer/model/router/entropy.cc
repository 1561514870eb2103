#include "trainer/model/router/entropy.h"

#include <algorithm>
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

// A score that vanishes has no influence, though its logarithm is large.
constexpr float kLeastScore = 1e-30f;

}  // namespace

std::vector<double> Entropies(const at::Tensor& scores) {
  std::vector<double> entropies(scores.size(0));
  ParallelFor(scores.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) entropies[row] = EntropyOf(RowOf(scores, row));
  });
  return entropies;
}

// With S the sum of scores: (sum_i s_i log s_i / S - log s_j) / S.
void AddEntropyGradient(const at::Tensor& scores, double factor, at::Tensor& dscores) {
  ForEachRow(scores, dscores, [factor](std::span<const float> s, std::span<float> ds) {
    double sum = 0, inner = 0;
    for (const float v : s) {
      const double least = std::max(v, kLeastScore);
      sum += least;
      inner += least * std::log(least);
    }
    for (size_t i = 0; i < s.size(); ++i) {
      const double gradient = (inner / sum - std::log(std::max(s[i], kLeastScore))) / sum;
      ds[i] += static_cast<float>(factor * gradient);
    }
  });
}

}  // namespace moesaic
