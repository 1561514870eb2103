#include "trainer/metrics/mutual_information.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/log.h"

namespace moesaic {
namespace {

constexpr int64_t kMostCounts = int64_t{1} << 20;
// Standard deviations of a hypergeometric variable beyond which its probability is left out.
constexpr double kTails = 10;

struct Margins {
  std::vector<double> rows;
  std::vector<double> columns;
  double total = 0;
};

Margins MarginsOf(std::span<const double> table, int64_t columns) {
  Margins margins;
  margins.rows.resize(table.size() / columns);
  margins.columns.resize(columns);
  for (size_t i = 0; i < table.size(); ++i) {
    margins.rows[i / columns] += table[i];
    margins.columns[i % columns] += table[i];
    margins.total += table[i];
  }
  return margins;
}

// n / N log(N n / (a b)), of a cell with n of N tokens in a row with a and a column with b.
double CellInformation(double n, double a, double b, double total) {
  return n > 0 ? n / total * std::log(total * n / (a * b)) : 0;
}

// log of n over k.
double LogChoose(double n, double k) {
  return std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1);
}

// The expectation of CellInformation when n is hypergeometric: b drawn of N of which a count.
double ExpectedCell(double a, double b, double total) {
  const double mean = a * b / total;
  const double variance = mean * (total - a) / total * (total - b) / std::max(1.0, total - 1);
  const double reach = kTails * std::sqrt(variance) + kTails;
  const double lowest = std::max({1.0, a + b - total, std::floor(mean - reach)});
  const double highest = std::min({a, b, std::ceil(mean + reach)});
  if (lowest > highest) return 0;
  double probability =
      std::exp(LogChoose(a, lowest) + LogChoose(total - a, b - lowest) - LogChoose(total, b));
  double expected = 0;
  for (double n = lowest; n <= highest; ++n) {
    expected += probability * CellInformation(n, a, b, total);
    probability *= (a - n) * (b - n) / ((n + 1) * (total - a - b + n + 1));
  }
  return expected;
}

std::vector<std::pair<size_t, size_t>> PairsOf(size_t layers, int64_t table) {
  std::vector<std::pair<size_t, size_t>> all, neighbours;
  for (size_t a = 0; a < layers; ++a) {
    for (size_t b = a + 1; b < layers; ++b) {
      all.emplace_back(a, b);
      if (b == a + 1) neighbours.emplace_back(a, b);
    }
  }
  for (const auto& pairs : {all, neighbours}) {
    if (static_cast<int64_t>(pairs.size()) <= kMostCounts / table) return pairs;
  }
  return {};
}

}  // namespace

double MutualInformation(std::span<const double> table, int64_t columns) {
  const Margins margins = MarginsOf(table, columns);
  double information = 0;
  for (size_t i = 0; i < table.size(); ++i) {
    information += CellInformation(table[i], margins.rows[i / columns],
                                   margins.columns[i % columns], margins.total);
  }
  return information;
}

double ShuffledInformation(std::span<const double> table, int64_t columns) {
  const Margins margins = MarginsOf(table, columns);
  double information = 0;
  for (const double a : margins.rows) {
    for (const double b : margins.columns) {
      if (a > 0 && b > 0) information += ExpectedCell(a, b, margins.total);
    }
  }
  return information;
}

double MeanInformation(std::span<const LayerPairInformation> pairs) {
  double sum = 0;
  for (const LayerPairInformation& pair : pairs) sum += pair.information - pair.shuffled;
  return pairs.empty() ? 0 : sum / static_cast<double>(pairs.size());
}

BestExpertPairs::BestExpertPairs(std::vector<int> layers, int64_t experts)
    : layers_(std::move(layers)),
      classes_(experts + 1),
      pairs_(PairsOf(layers_.size(), TableSize())),
      counts_(pairs_.size() * TableSize()) {}

void BestExpertPairs::Add(std::span<const LayerRouting> layers) {
  for (size_t p = 0; p < pairs_.size(); ++p) {
    const std::vector<int32_t>& first = layers[pairs_[p].first].best;
    const std::vector<int32_t>& second = layers[pairs_[p].second].best;
    if (first.size() != second.size()) {
      LogError("[routing] layers {} and {} saw {} and {} tokens", layers_[pairs_[p].first],
               layers_[pairs_[p].second], first.size(), second.size());
      std::abort();
    }
    double* table = counts_.data() + p * TableSize();
    for (size_t t = 0; t < first.size(); ++t) ++table[first[t] * classes_ + second[t]];
  }
}

std::vector<LayerPairInformation> BestExpertPairs::Information() const {
  std::vector<LayerPairInformation> result;
  for (size_t p = 0; p < pairs_.size(); ++p) {
    const std::span<const double> table(counts_.data() + p * TableSize(), TableSize());
    result.push_back({.first = layers_[pairs_[p].first],
                      .second = layers_[pairs_[p].second],
                      .information = MutualInformation(table, classes_),
                      .shuffled = ShuffledInformation(table, classes_)});
  }
  return result;
}

}  // namespace moesaic
