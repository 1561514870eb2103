#include "trainer/catalog/random_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace moesaic {
namespace {

// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t ones = 0xffffffff;
  EXPECT_EQ(Philox({ones, ones, ones, ones}, {ones, ones}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomStream, AnElementDependsOnItsIndexAlone) {
  const RandomStream stream(7, "init", "embedding");
  std::vector<float> whole(103);
  stream.FillNormal(0, 2.0, whole);
  for (size_t first : {0u, 1u, 6u, 50u}) {
    std::vector<float> part(whole.size() - first);
    stream.FillNormal(first, 2.0, part);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first)) << first;
    EXPECT_FLOAT_EQ(2 * stream.Normal(first), whole[first]);
  }
}

// C10: randomness is keyed by seed and name, never by rank or order.
TEST(RandomStream, C10StreamsDifferBySeedPurposeAndName) {
  const auto first = [](uint64_t seed, const char* purpose, const char* name) {
    std::vector<float> values(8);
    RandomStream(seed, purpose, name).FillNormal(0, 1, values);
    return values;
  };
  const auto base = first(1, "init", "layers.0.moe.experts.0.down");
  EXPECT_EQ(base, first(1, "init", "layers.0.moe.experts.0.down"));
  EXPECT_NE(base, first(2, "init", "layers.0.moe.experts.0.down"));
  EXPECT_NE(base, first(1, "mask", "layers.0.moe.experts.0.down"));
  EXPECT_NE(base, first(1, "init", "layers.0.moe.experts.1.down"));
  EXPECT_NE(first(1, "ab", "c"), first(1, "a", "bc"));
}

TEST(RandomStream, NormalHasTheMomentsOfANormal) {
  const int n = 400000;
  std::vector<float> values(n);
  RandomStream(3, "test", "moments").FillNormal(0, 1, values);
  double sum[5] = {};
  for (float v : values) {
    for (int p = 1; p <= 4; ++p) sum[p] += std::pow(v, p);
  }
  EXPECT_NEAR(sum[1] / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(sum[2] / n, 1, 5 * std::sqrt(2.0 / n));
  EXPECT_NEAR(sum[3] / n, 0, 5 * std::sqrt(15.0 / n));
  EXPECT_NEAR(sum[4] / n, 3, 5 * std::sqrt(96.0 / n));
}

TEST(RandomStream, UniformIsUniform) {
  const int n = 100000;
  const RandomStream stream(3, "test", "uniform");
  std::vector<int> bins(10);
  for (int i = 0; i < n; ++i) {
    const double u = stream.Uniform(i);
    ASSERT_GT(u, 0);
    ASSERT_LT(u, 1);
    ++bins[static_cast<int>(10 * u)];
  }
  for (int count : bins) EXPECT_NEAR(count, n / 10, 5 * std::sqrt(n * 0.09));
}

}  // namespace
}  // namespace moesaic
