#include "trainer/catalog/spawn_mask.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace moesaic {
namespace {

constexpr char kName[] = "layers.1.moe.experts.3.down";

std::vector<float> Ones(size_t n) { return std::vector<float>(n, 1.0f); }

TEST(SpawnMask, ZeroesTheShareAndLeavesTheRest) {
  std::vector<float> values = Ones(100000);
  ApplySpawnMask({.seed = 7, .share = 0.3, .rescale = false}, kName, 0, values);
  double zeros = 0;
  for (const float value : values) {
    EXPECT_TRUE(value == 0 || value == 1);
    zeros += value == 0;
  }
  EXPECT_NEAR(zeros / 1e5, 0.3, 5 * std::sqrt(0.21 / 1e5));
}

TEST(SpawnMask, RescalesWhatIsLeft) {
  std::vector<float> plain = Ones(1000), rescaled = Ones(1000);
  ApplySpawnMask({.seed = 7, .share = 0.6, .rescale = false}, kName, 0, plain);
  ApplySpawnMask({.seed = 7, .share = 0.6, .rescale = true}, kName, 0, rescaled);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_FLOAT_EQ(rescaled[i], plain[i] * 2.5f);
}

TEST(SpawnMask, AShareOfNothingChangesNothing) {
  std::vector<float> values = {1, -2, 0.5f};
  ApplySpawnMask({.seed = 7, .share = 0, .rescale = true}, kName, 0, values);
  EXPECT_EQ(values, (std::vector<float>{1, -2, 0.5f}));
}

// The mask of an element depends on no cut into parts.
TEST(SpawnMask, APartIsMaskedLikeTheWhole) {
  std::vector<float> whole = Ones(500), part = Ones(123);
  const SpawnMask mask = {.seed = 9, .share = 0.5, .rescale = false};
  ApplySpawnMask(mask, kName, 0, whole);
  ApplySpawnMask(mask, kName, 77, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 77));
}

TEST(SpawnMask, ExpertsMatricesAndSeedsDiffer) {
  std::vector<float> base = Ones(500);
  ApplySpawnMask({.seed = 9, .share = 0.5, .rescale = false}, kName, 0, base);
  for (const auto& [seed, name] : {std::pair<uint64_t, const char*>{10, kName},
                                   {9, "layers.1.moe.experts.4.down"},
                                   {9, "layers.2.moe.experts.3.down"},
                                   {9, "layers.1.moe.experts.3.gate_up"}}) {
    std::vector<float> other = Ones(500);
    ApplySpawnMask({.seed = seed, .share = 0.5, .rescale = false}, name, 0, other);
    EXPECT_NE(other, base) << seed << " " << name;
  }
}

}  // namespace
}  // namespace moesaic
