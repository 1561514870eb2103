#include "trainer/metrics/mutual_information.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "trainer/catalog/random_stream.h"

namespace moesaic {
namespace {

std::vector<double> TableOf(const std::vector<int>& a, const std::vector<int>& b, int classes) {
  std::vector<double> table(classes * classes);
  for (size_t t = 0; t < a.size(); ++t) ++table[a[t] * classes + b[t]];
  return table;
}

void Shuffle(std::vector<int>& values, const RandomStream& random, uint64_t from) {
  for (size_t i = values.size(); i-- > 1;) {
    std::swap(values[i], values[static_cast<size_t>(random.Uniform(from + i) * (i + 1))]);
  }
}

TEST(MutualInformation, IsTheEntropyOfEqualRowsAndColumnsAndZeroOfIndependentOnes) {
  EXPECT_NEAR(MutualInformation(std::vector<double>{5, 0, 0, 5}, 2), std::log(2), 1e-12);
  EXPECT_NEAR(MutualInformation(std::vector<double>{2, 6, 4, 12}, 2), 0, 1e-12);
  EXPECT_EQ(MutualInformation(std::vector<double>{0, 0, 0, 0}, 2), 0);
  EXPECT_EQ(ShuffledInformation(std::vector<double>{0, 0, 0, 0}, 2), 0);
  // One of two layers sends all tokens to one expert: nothing to know, shuffled or not.
  EXPECT_NEAR(ShuffledInformation(std::vector<double>{3, 7, 0, 0}, 2), 0, 1e-12);
}

// The mean over all orders of four tokens, by hand: the table of a pair of two-against-two is
// (2, 0, 0, 2) or its mirror in a third of them and (1, 1, 1, 1) in two thirds.
TEST(MutualInformation, ShuffledIsTheMeanOverPermutations) {
  EXPECT_NEAR(ShuffledInformation(std::vector<double>{2, 0, 0, 2}, 2), std::log(2) / 3, 1e-12);
}

TEST(MutualInformation, ShuffledIsWhatShufflingGives) {
  constexpr int kClasses = 5, kTokens = 700, kShuffles = 400;
  const RandomStream random(3, "test", "shuffles");
  std::vector<int> a, b;
  for (int t = 0; t < kTokens; ++t) {
    a.push_back(static_cast<int>(kClasses * std::pow(random.Uniform(2 * t), 2)));
    b.push_back(random.Uniform(2 * t + 1) < 0.5 ? a.back() : t % kClasses);
  }
  const double predicted = ShuffledInformation(TableOf(a, b, kClasses), kClasses);
  EXPECT_GT(MutualInformation(TableOf(a, b, kClasses), kClasses), 10 * predicted);
  double mean = 0;
  for (int i = 0; i < kShuffles; ++i) {
    Shuffle(b, random, 10'000 + uint64_t{kTokens} * i);
    mean += MutualInformation(TableOf(a, b, kClasses), kClasses) / kShuffles;
  }
  // About (5 - 1) (5 - 1) / 2 / 700 = 0.0114, with a spread of 0.004 a shuffle.
  EXPECT_NEAR(predicted, mean, 0.001);
  EXPECT_NEAR(predicted, 16.0 / 2 / kTokens, 0.002);
}

TEST(BestExpertPairs, CountAllPairsOfLayers) {
  BestExpertPairs pairs({1, 3, 4}, 2);
  std::vector<LayerRouting> layers(3);
  layers[0].best = {0, 0, 1, 1};
  layers[1].best = {1, 1, 2, 2};  // 2: no expert
  layers[2].best = {0, 1, 0, 1};
  pairs.Add(layers);
  pairs.Add(layers);
  const auto information = pairs.Information();
  ASSERT_EQ(information.size(), 3u);
  EXPECT_EQ(information[0].first, 1);
  EXPECT_EQ(information[0].second, 3);
  EXPECT_NEAR(information[0].information, std::log(2), 1e-12);
  EXPECT_NEAR(information[1].information, 0, 1e-12);
  EXPECT_GT(information[1].shuffled, 0);
}

TEST(BestExpertPairs, OfLargeModelsAreOfNeighboursOrNone) {
  std::vector<int> layers(60);
  for (int i = 0; i < 60; ++i) layers[i] = i;
  EXPECT_EQ(BestExpertPairs(layers, 16).Information().size(), 60u * 59 / 2);
  EXPECT_EQ(BestExpertPairs(layers, 64).Information().size(), 59u);
  EXPECT_EQ(BestExpertPairs(layers, 4096).Information().size(), 0u);
}

}  // namespace
}  // namespace moesaic
