#include "trainer/model/router/balance.h"

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "trainer/model/router/rows.h"

namespace moesaic {
namespace {

double LogSumExp(std::span<const float> z) {
  const double largest = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (float v : z) sum += std::exp(v - largest);
  return largest + std::log(sum);
}

// What divides a token's scores to make its probabilities.
double Total(const BalanceInputs& in, std::span<const float> scores) {
  if (in.score->sums_to_one) return 1;
  double total = 0;
  for (float s : scores) total += s;
  return total;
}

// alpha * E * f_i / T: what one token's p_i counts for.
std::vector<double> Shares(const BalanceInputs& in) {
  const double tokens = static_cast<double>(in.scores.size(0));
  const double experts = static_cast<double>(in.scores.size(1));
  std::vector<double> shares(in.counts.begin(), in.counts.end());
  for (double& share : shares) {
    share *= in.rule->coefficient() * experts / (static_cast<double>(in.active) * tokens * tokens);
  }
  return shares;
}

}  // namespace

double BalanceLoss(const BalanceInputs& in) {
  const int64_t tokens = in.scores.size(0);
  if (tokens == 0) return 0;
  double balance = 0;
  if (in.rule->coefficient() != 0) {
    const std::vector<double> shares = Shares(in);
    for (int64_t t = 0; t < tokens; ++t) {
      const std::span<const float> s = RowOf(in.scores, t);
      double inner = 0;
      for (size_t i = 0; i < s.size(); ++i) inner += shares[i] * s[i];
      balance += inner / Total(in, s);
    }
  }
  double squares = 0;
  if (in.rule->z_loss() != 0) {
    for (int64_t t = 0; t < tokens; ++t) {
      const double lse = LogSumExp(RowOf(in.logits, t));
      squares += lse * lse;
    }
  }
  return balance + in.rule->z_loss() * squares / static_cast<double>(tokens);
}

void BalanceLossBackward(const BalanceInputs& in, double factor, at::Tensor& dscores,
                         at::Tensor& dlogits) {
  if (in.scores.size(0) == 0) return;
  if (in.rule->coefficient() != 0) {
    const std::vector<double> shares = Shares(in);
    ForEachRow(in.scores, dscores, [&](std::span<const float> s, std::span<float> ds) {
      const double total = Total(in, s);
      double inner = 0;  // of the normalised scores; a sum fixed at 1 has no gradient of its own
      if (!in.score->sums_to_one) {
        for (size_t i = 0; i < s.size(); ++i) inner += shares[i] * s[i] / total;
      }
      for (size_t i = 0; i < s.size(); ++i) {
        ds[i] += static_cast<float>(factor * (shares[i] - inner) / total);
      }
    });
  }
  if (in.rule->z_loss() != 0) {
    const double each = factor * in.rule->z_loss() * 2 / static_cast<double>(in.scores.size(0));
    ForEachRow(in.logits, dlogits, [&](std::span<const float> z, std::span<float> dz) {
      const double lse = LogSumExp(z);
      for (size_t i = 0; i < z.size(); ++i) {
        dz[i] += static_cast<float>(each * lse * std::exp(z[i] - lse));
      }
    });
  }
}

}  // namespace moesaic
