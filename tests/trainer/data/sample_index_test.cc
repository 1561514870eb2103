#include "trainer/data/sample_index.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "parallel/layout/micro_batch_plan.h"

namespace moesaic {
namespace {

TEST(PermutedPosition, IsABijectionOfEverySize) {
  for (int64_t size = 1; size <= 300; ++size) {
    std::set<int64_t> seen;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t at = PermutedPosition(17, size, i);
      ASSERT_GE(at, 0);
      ASSERT_LT(at, size);
      seen.insert(at);
    }
    ASSERT_EQ(static_cast<int64_t>(seen.size()), size);
  }
}

TEST(PermutedPosition, TakesHugeSizes) {
  const int64_t size = std::numeric_limits<int64_t>::max();
  std::set<int64_t> seen;
  for (int64_t i = 0; i < 1000; ++i) seen.insert(PermutedPosition(3, size, i));
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_GE(*seen.begin(), 0);
}

TEST(PermutedPosition, SpreadsLikeChance) {
  // Over many keys, each position goes everywhere about equally often (chi-squared, 9 degrees).
  constexpr int64_t kSize = 10, kKeys = 20000;
  for (int64_t i = 0; i < kSize; ++i) {
    std::vector<double> counts(kSize, 0);
    for (int64_t key = 0; key < kKeys; ++key) ++counts[PermutedPosition(key, kSize, i)];
    double chi = 0;
    for (const double count : counts) {
      chi += (count - kKeys / 10.0) * (count - kKeys / 10.0) / (kKeys / 10.0);
    }
    EXPECT_LT(chi, 35) << "position " << i;  // 1 in 16,000 by chance
  }
}

TEST(PermutedPosition, LeavesNoNeighboursTogether) {
  constexpr int64_t kSize = 10000;
  int neighbours = 0;
  for (int64_t i = 0; i + 1 < kSize; ++i) {
    neighbours += std::abs(PermutedPosition(5, kSize, i) - PermutedPosition(5, kSize, i + 1)) == 1;
  }
  EXPECT_LT(neighbours, 15);  // 2 are expected of a random order
}

SampleIndex Built(const std::vector<SampleSource>& sources, uint64_t seed = 1) {
  auto index = SampleIndex::Build(sources, seed);
  EXPECT_TRUE(index.ok()) << index.status();
  return *std::move(index);
}

TEST(SampleIndex, C5EachSampleOfASourceOnceAnEpoch) {
  const SampleIndex index = Built({{10, 0.7}, {3, 0.2}, {1, 0.1}});
  std::map<std::pair<int, int64_t>, std::multiset<int64_t>> epochs;
  for (int64_t g = 0; g < 600; ++g) {
    const SamplePlace place = index.At(g);
    epochs[{place.source, place.epoch}].insert(place.sample);
  }
  const std::multiset<int64_t> ten = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  for (int64_t epoch = 0; epoch < 42; ++epoch) EXPECT_EQ((epochs[{0, epoch}]), ten);
  for (int64_t epoch = 0; epoch < 40; ++epoch) {
    EXPECT_EQ((epochs[{1, epoch}]), (std::multiset<int64_t>{0, 1, 2}));
  }
  EXPECT_EQ((epochs[{2, 59}]), std::multiset<int64_t>{0});
}

TEST(SampleIndex, C5TheSamplesDoNotDependOnTheRanks) {
  const SampleIndex index = Built({{100, 3}, {50, 1}});
  constexpr int64_t kMicroBatch = 2, kMicroBatches = 7, kSteps = 13;
  const auto consumed = [&](int first_ranks, int later_ranks) {
    std::multiset<std::tuple<int, int64_t, int64_t>> seen;
    for (int64_t step = 0; step < kSteps; ++step) {
      const MicroBatchPlan plan{kMicroBatches, step < 5 ? first_ranks : later_ranks};
      for (int rank = 0; rank < plan.ranks; ++rank) {
        for (int64_t m = plan.begin(rank); m < plan.end(rank); ++m) {
          for (int64_t i = 0; i < kMicroBatch; ++i) {
            const auto place = index.At((step * kMicroBatches + m) * kMicroBatch + i);
            seen.insert({place.source, place.epoch, place.sample});
          }
        }
      }
    }
    return seen;
  };
  const auto alone = consumed(1, 1);
  EXPECT_EQ(alone.size(), 182u);
  EXPECT_EQ(consumed(2, 3), alone);
  EXPECT_EQ(consumed(9, 1), alone);
}

TEST(SampleIndex, EveryPrefixKeepsTheWeightsWithinOneSample) {
  const std::vector<std::vector<double>> cases = {{1},
                                                  {1, 1},
                                                  {0.7, 0.2, 0.1},
                                                  {5, 3, 2, 2, 1},
                                                  {1000, 1},
                                                  {1, 1, 1, 1, 1, 1, 1},
                                                  {0.123456789, 0.2718281828, 3.14159265},
                                                  {1e-9, 1}};
  for (const auto& weights : cases) {
    std::vector<SampleSource> sources;
    for (const double weight : weights) sources.push_back({1000, weight});
    const SampleIndex index = Built(sources);
    std::vector<int64_t> counts(weights.size(), 0);
    for (int64_t g = 0; g < std::min<int64_t>(index.period() + 50, 70000); ++g) {
      ++counts[index.At(g).source];
      for (size_t s = 0; s < weights.size(); ++s) {
        // |count - ideal| < 1, in whole numbers.
        const int64_t distance =
            counts[s] * index.period() - (g + 1) * index.slots(static_cast<int>(s));
        ASSERT_LT(std::abs(distance), index.period()) << "source " << s << " after " << g + 1;
      }
    }
  }
}

TEST(SampleIndex, KeepsUsualWeightsExactly) {
  EXPECT_EQ(Built({{5, 0.7}, {5, 0.2}, {5, 0.1}}).period(), 10);
  EXPECT_EQ(Built({{5, 3}, {5, 1}}).period(), 4);
  EXPECT_EQ(Built({{5, 1.0 / 3}, {5, 2.0 / 3}}).period(), 3);
  EXPECT_EQ(Built({{5, 42}}).period(), 1);
}

TEST(SampleIndex, RoundsOddWeightsToTheLargestPeriod) {
  const double pi = 3.14159265358979, e = 2.71828182845905;
  const SampleIndex index = Built({{5, pi}, {5, e}});
  EXPECT_EQ(index.period(), SampleIndex::kMaxPeriod);
  EXPECT_NEAR(static_cast<double>(index.slots(0)) / static_cast<double>(index.period()),
              pi / (pi + e), 1.0 / 65536);
  EXPECT_EQ(Built({{5, 1e-12}, {5, 1}}).slots(0), 1);  // never none
}

TEST(SampleIndex, CountsWhatItPlaces) {
  const SampleIndex index = Built({{4, 0.5}, {4, 0.3}, {4, 0.2}});
  int64_t count = 0;
  for (int64_t g = 0; g < 45; ++g) {
    EXPECT_EQ(index.CountBefore(1, g), count);
    count += index.At(g).source == 1;
  }
}

TEST(SampleIndex, TheOrderDependsOnSeedEpochAndSource) {
  const auto order = [](const SampleIndex& index, int64_t first, int64_t stride) {
    std::vector<int64_t> samples;
    for (int64_t k = 0; k < 50; ++k) samples.push_back(index.At(first + k * stride).sample);
    return samples;
  };
  const SampleIndex one = Built({{50, 1}, {50, 1}}, 1);
  EXPECT_EQ(order(one, 0, 2), order(Built({{50, 1}, {50, 1}}, 1), 0, 2));
  EXPECT_NE(order(one, 0, 2), order(Built({{50, 1}, {50, 1}}, 2), 0, 2));
  EXPECT_NE(order(one, 0, 2), order(one, 1, 2));
  EXPECT_NE(order(one, 0, 2), order(one, 100, 2));
}

TEST(SampleIndex, RefusesWhatCannotBeSampled) {
  EXPECT_FALSE(SampleIndex::Build({}, 1).ok());
  for (const SampleSource source :
       {SampleSource{0, 1}, SampleSource{1, 0}, SampleSource{1, -1}, SampleSource{1, std::nan("")},
        SampleSource{1, std::numeric_limits<double>::infinity()}}) {
    EXPECT_EQ(SampleIndex::Build({&source, 1}, 1).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace moesaic
