#include "trainer/model/router/bias.h"

#include <numeric>

namespace moesaic {

void MoveBias(const BiasSpec& rule, uint64_t step, std::span<const double> counts,
              std::span<float> bias) {
  if (rule.has_until_step() && step >= rule.until_step()) return;
  const double mean = std::accumulate(counts.begin(), counts.end(), 0.0) /
                      static_cast<double>(counts.size());
  if (mean == 0) return;
  for (size_t i = 0; i < bias.size(); ++i) {
    const double error = mean - counts[i];
    const double move = rule.rule() == SIGN ? (error > 0) - (error < 0) : error / mean;
    bias[i] += static_cast<float>(rule.speed() * move);
  }
}

}  // namespace moesaic
