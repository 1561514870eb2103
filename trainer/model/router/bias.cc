#include "trainer/model/router/bias.h"

namespace moesaic {

void MoveBias(const BiasSpec& rule, uint64_t step, std::span<const double> counts,
              std::span<const bool> candidates, std::span<float> bias) {
  if (rule.has_until_step() && step >= rule.until_step()) return;
  const auto is_candidate = [&](size_t i) { return candidates.empty() || candidates[i]; };
  double mean = 0, experts = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (!is_candidate(i)) continue;
    mean += counts[i];
    ++experts;
  }
  if (mean == 0) return;
  mean /= experts;
  for (size_t i = 0; i < bias.size(); ++i) {
    if (!is_candidate(i)) continue;
    const double error = mean - counts[i];
    const double move = rule.rule() == SIGN ? (error > 0) - (error < 0) : error / mean;
    bias[i] += static_cast<float>(rule.speed() * move);
  }
}

}  // namespace moesaic
