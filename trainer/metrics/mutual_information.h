// How much the expert that a token likes most in one layer says about the one in another.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "trainer/metrics/layer_routing.h"

namespace moesaic {

// Mutual information of the row and the column of a table of counts, in nats: the plug-in estimate,
// which is too high where tokens are few.
double MutualInformation(std::span<const double> table, int64_t columns);

// What MutualInformation of such a table would be on average if the rows of tokens were shuffled
// against the columns, over all permutations (Vinh, Epps and Bailey, 2010, "Information theoretic
// measures for clusterings comparison", section 4.1). The sums of rows and columns decide it.
double ShuffledInformation(std::span<const double> table, int64_t columns);

struct LayerPairInformation {
  int first = 0;  // layers of the model
  int second = 0;
  double information = 0;  // nats
  double shuffled = 0;     // what tokens shuffled between the layers would give
};

// What the pairs tell beyond shuffled tokens, their mean; 0 for none.
double MeanInformation(std::span<const LayerPairInformation> pairs);

// Counts of tokens by their best experts in pairs of layers: in all pairs of layers with experts
// where these take at most 2^20 counts, else in neighbours, else in none. Thread-compatible.
class BestExpertPairs {
 public:
  // `experts`: the largest pool of a layer.
  BestExpertPairs(std::vector<int> layers, int64_t experts);

  // One micro-batch, by layer; `best` is needed.
  void Add(std::span<const LayerRouting> layers);
  // What is to be summed over ranks, exactly in any order.
  std::span<double> counts() { return counts_; }
  std::vector<LayerPairInformation> Information() const;

 private:
  int64_t TableSize() const { return classes_ * classes_; }

  const std::vector<int> layers_;
  const int64_t classes_;  // experts, and one for tokens without any
  std::vector<std::pair<size_t, size_t>> pairs_;
  std::vector<double> counts_;
};

}  // namespace moesaic
