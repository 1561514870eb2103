#include "trainer/generate/token_sampler.h"

#include <gtest/gtest.h>

#include <cmath>

namespace moesaic {
namespace {

TEST(TokenSampler, TemperatureZeroTakesTheLowestOfTheLikeliest) {
  TokenSampler sampler({.temperature = 0});
  EXPECT_EQ(sampler.Sample(std::vector<float>{1, 3, 3, 2}, 0), 1);
}

TEST(TokenSampler, TopPKeepsTheNucleusOnly) {
  // Probabilities 0.6, 0.3, 0.1: the first two reach 0.8.
  const std::vector<float> logits = {std::log(0.1f), std::log(0.6f), std::log(0.3f)};
  TokenSampler sampler({.temperature = 1, .top_p = 0.8, .seed = 5});
  std::vector<int> counts(3);
  for (uint64_t position = 0; position < 3000; ++position) {
    ++counts[sampler.Sample(logits, position)];
  }
  EXPECT_EQ(counts[0], 0);
  EXPECT_NEAR(counts[1] / 3000.0, 2.0 / 3, 0.04);
}

TEST(TokenSampler, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {0, 1, 2};
  TokenSampler sampler({.temperature = 0.5, .seed = 9});
  std::vector<double> counts(3);
  constexpr int kDraws = 6000;
  for (uint64_t position = 0; position < kDraws; ++position) {
    ++counts[sampler.Sample(logits, position)];
  }
  const double total = 1 + std::exp(2.0) + std::exp(4.0);
  EXPECT_NEAR(counts[2] / kDraws, std::exp(4.0) / total, 0.03);
  EXPECT_NEAR(counts[1] / kDraws, std::exp(2.0) / total, 0.03);
}

TEST(TokenSampler, TheSameSeedAndPositionGiveTheSameToken) {
  const std::vector<float> logits(50, 0.0f);
  TokenSampler a({.seed = 3}), b({.seed = 3}), c({.seed = 4});
  int differs = 0;
  for (uint64_t position = 0; position < 20; ++position) {
    const int64_t token = a.Sample(logits, position);
    EXPECT_EQ(token, b.Sample(logits, position));
    differs += token != c.Sample(logits, position);
  }
  EXPECT_GT(differs, 10);
}

}  // namespace
}  // namespace moesaic
