#include "trainer/model/router/balance.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "trainer/model/router/entropy.h"
#include "trainer/model/router/rows.h"
#include "trainer/model/router/select.h"
#include "trainer/recipe/schedule.h"

namespace moesaic {
namespace {

// Scores may underflow.
constexpr double kLeastTotal = 1e-20;

double LogSumExp(std::span<const float> z) {
  const double largest = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (float v : z) sum += std::exp(v - largest);
  return largest + std::log(sum);
}

bool IsCandidate(const BalanceInputs& in, size_t expert) {
  return !in.candidates.defined() || in.candidates.const_data_ptr<bool>()[expert];
}

// Whether the scores of a token's candidates are its probabilities as they stand.
bool AreProbabilities(const BalanceInputs& in) {
  return in.score->sums_to_one && !in.candidates.defined();
}

// What divides a token's scores to make its probabilities.
double Total(const BalanceInputs& in, std::span<const float> scores) {
  if (AreProbabilities(in)) return 1;
  double total = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (IsCandidate(in, i)) total += scores[i];
  }
  return std::max(total, kLeastTotal);
}

bool HasPrices(const BalanceInputs& in) {
  return CountsSelected(*in.rule, in.step) || !in.pool_prices.empty();
}

// Tokens with an expert in each group.
std::vector<double> SentByGroup(const BalanceInputs& in, const at::Tensor& selected) {
  const int64_t active = selected.size(1);
  const int64_t* ids = selected.const_data_ptr<int64_t>();
  std::vector<double> sent(in.groups);
  std::vector<int64_t> last(in.groups, -1);  // token counted last
  for (int64_t pair = 0; pair < selected.numel(); ++pair) {
    if (ids[pair] < 0) continue;
    const int64_t group = ids[pair] * in.groups / in.scores.size(1);
    if (std::exchange(last[group], pair / active) != pair / active) ++sent[group];
  }
  return sent;
}

// What a token of a part pays for p_i, of experts chosen `counts` times.
class Prices {
 public:
  Prices(const BalanceInputs& in, const at::Tensor& selected)
      : in_(in),
        tokens_(static_cast<double>(selected.size(0))),
        width_(in.scores.size(1) / in.groups),
        frequencies_(Frequencies(selected)),
        prices_(frequencies_) {
    const double alpha = BalanceCoefficientAt(*in.rule, in.step);
    for (double& price : prices_) price *= alpha;
    AddGroups();
    if (in.rule->communication() != 0) AddCommunication(SentByGroup(in, selected));
    for (size_t i = 0; i < prices_.size(); ++i) {
      prices_[i] = IsCandidate(in, i) ? prices_[i] / tokens_ : 0;
    }
  }

  const std::vector<double>& values() const { return prices_; }

 private:
  // f_i, whose mean over the candidates is 1 unless `fan_out` says otherwise. All 0 where nothing
  // was chosen.
  std::vector<double> Frequencies(const at::Tensor& selected) const {
    std::vector<double> counts;
    if (in_.rule->scope() == GLOBAL && in_.load.defined()) {
      const float* load = in_.load.const_data_ptr<float>();
      counts.assign(load, load + in_.load.numel());
    }
    if (CandidateSum(counts) == 0) {
      const std::vector<int64_t> own = CountByExpert(selected, in_.scores.size(1));
      counts.assign(own.begin(), own.end());
    }
    if (in_.nulls > 0) ShareAmongNulls(counts);
    const double candidates = CandidateSum(std::vector<double>(counts.size(), 1));
    const double chosen = in_.fan_out > 0 ? in_.fan_out * tokens_ : CandidateSum(counts);
    for (double& count : counts) count *= chosen > 0 ? candidates / chosen : 0;
    return counts;
  }

  void ShareAmongNulls(std::vector<double>& counts) const {
    const auto nulls = std::span(counts).last(in_.nulls);
    const double sum = std::accumulate(nulls.begin(), nulls.end(), 0.0);
    std::ranges::fill(nulls, sum / static_cast<double>(in_.nulls));
  }

  double CandidateSum(std::span<const double> values) const {
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) sum += IsCandidate(in_, i) ? values[i] : 0;
    return sum;
  }

  void AddGroups() {
    const double alpha = in_.rule->group_coefficient();
    if (alpha == 0) return;
    for (int64_t group = 0; group < in_.groups; ++group) {
      double sum = 0;
      for (int64_t i = 0; i < width_; ++i) sum += frequencies_[group * width_ + i];
      AddToGroup(group, alpha * sum / static_cast<double>(width_));
    }
  }

  void AddCommunication(const std::vector<double>& sent) {
    const double most = static_cast<double>(in_.group_limit) * tokens_ / sent.size();
    for (int64_t group = 0; group < in_.groups; ++group) {
      AddToGroup(group, in_.rule->communication() * sent[group] / most);
    }
  }

  void AddToGroup(int64_t group, double price) {
    for (int64_t i = 0; i < width_; ++i) prices_[group * width_ + i] += price;
  }

  const BalanceInputs& in_;
  const double tokens_;
  const int64_t width_;  // experts a group
  const std::vector<double> frequencies_;
  std::vector<double> prices_;
};

// Tokens that are balanced together, from `first`, and their prices.
struct Part {
  int64_t first = 0;
  int64_t tokens = 0;
  std::vector<double> prices;
};

// The parts of the micro-batch, with prices so that the sum over all tokens is the loss.
std::vector<Part> PartsOf(const BalanceInputs& in) {
  const int64_t parts = in.rule->scope() == SEQUENCE ? in.sequences : 1;
  const int64_t tokens = in.scores.size(0) / parts;
  std::vector<Part> result;
  for (int64_t part = 0; part < parts; ++part) {
    const at::Tensor selected = in.selected.narrow(0, part * tokens, tokens);
    result.push_back({part * tokens, tokens, Prices(in, selected).values()});
    std::vector<double>& prices = result.back().prices;
    for (size_t i = 0; i < prices.size(); ++i) {
      prices[i] /= static_cast<double>(parts);
      if (!in.pool_prices.empty() && IsCandidate(in, i)) prices[i] += in.pool_prices[i];
    }
  }
  return result;
}

// b * mean over tokens of their entropy.
double EntropyLoss(const BalanceInputs& in) {
  if (in.rule->entropy() == 0) return 0;
  const std::vector<double> entropies = Entropies(in.scores);
  return in.rule->entropy() * std::accumulate(entropies.begin(), entropies.end(), 0.0) /
         static_cast<double>(entropies.size());
}

}  // namespace

bool CountsSelected(const BalanceSpec& rule, uint64_t step) {
  return BalanceCoefficientAt(rule, step) != 0 || rule.group_coefficient() != 0 ||
         rule.communication() != 0;
}

double BalanceLoss(const BalanceInputs& in) {
  const int64_t tokens = in.scores.size(0);
  if (tokens == 0) return 0;
  double balance = 0;
  if (HasPrices(in)) {
    for (const Part& part : PartsOf(in)) {
      for (int64_t t = part.first; t < part.first + part.tokens; ++t) {
        const std::span<const float> s = RowOf(in.scores, t);
        double inner = 0;
        for (size_t i = 0; i < s.size(); ++i) inner += part.prices[i] * s[i];
        balance += inner / Total(in, s);
      }
    }
  }
  double squares = 0;
  if (in.rule->z_loss() != 0) {
    for (int64_t t = 0; t < tokens; ++t) {
      const double lse = LogSumExp(RowOf(in.logits, t));
      squares += lse * lse;
    }
  }
  return balance + EntropyLoss(in) + in.rule->z_loss() * squares / static_cast<double>(tokens);
}

void BalanceLossBackward(const BalanceInputs& in, double factor, at::Tensor& dscores,
                         at::Tensor& dlogits) {
  if (in.scores.size(0) == 0) return;
  if (HasPrices(in)) {
    for (const Part& part : PartsOf(in)) {
      at::Tensor dpart = dscores.narrow(0, part.first, part.tokens);
      const std::vector<double>& prices = part.prices;
      ForEachRow(in.scores.narrow(0, part.first, part.tokens), dpart,
                 [&](std::span<const float> s, std::span<float> ds) {
                   const double total = Total(in, s);
                   // Of the normalised scores; a sum fixed at 1 has no gradient of its own.
                   double inner = 0;
                   if (!AreProbabilities(in)) {
                     for (size_t i = 0; i < s.size(); ++i) inner += prices[i] * s[i] / total;
                   }
                   for (size_t i = 0; i < s.size(); ++i) {
                     if (!IsCandidate(in, i)) continue;
                     ds[i] += static_cast<float>(factor * (prices[i] - inner) / total);
                   }
                 });
    }
  }
  if (in.rule->entropy() != 0) {
    const double each = factor * in.rule->entropy() / static_cast<double>(in.scores.size(0));
    AddEntropyGradient(in.scores, each, dscores);
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

std::vector<double> ProbabilitySums(const BalanceInputs& in) {
  std::vector<double> sums(in.scores.size(1));
  for (int64_t t = 0; t < in.scores.size(0); ++t) {
    const std::span<const float> s = RowOf(in.scores, t);
    const double total = Total(in, s);
    for (size_t i = 0; i < s.size(); ++i) sums[i] += IsCandidate(in, i) ? s[i] / total : 0;
  }
  return sums;
}

std::vector<double> PoolPrices(double beta, std::span<const LayerRouting> layers, int64_t tokens) {
  std::vector<double> prices(layers.front().counts.size());
  double chosen = 0;
  for (const LayerRouting& layer : layers) {
    for (size_t i = 0; i < prices.size(); ++i) {
      prices[i] += static_cast<double>(layer.counts[i]);
      chosen += static_cast<double>(layer.counts[i]);
    }
  }
  if (chosen == 0) return prices;
  const double seen = static_cast<double>(layers.size()) * static_cast<double>(tokens);
  for (double& price : prices) price *= beta * static_cast<double>(prices.size()) / chosen / seen;
  return prices;
}

}  // namespace moesaic
