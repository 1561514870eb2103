#include "parallel/comm/reduction.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace moesaic {
namespace {

uint16_t SumBFloat16(uint16_t a, uint16_t b) {
  const void* in[2] = {&a, &b};
  uint16_t out = 0;
  ReduceInOrder(Reduction::kSum, ElementType::kBFloat16, in, 1, &out);
  return out;
}

TEST(ReductionTest, BFloat16RoundsToNearestEvenAndKeepsSpecials) {
  EXPECT_EQ(SumBFloat16(0x3f80, 0x3b80), 0x3f80);  // 1 + 2^-8: a tie, down to even
  EXPECT_EQ(SumBFloat16(0x3f81, 0x3b80), 0x3f82);  // 1 + 2^-7 + 2^-8: a tie, up to even
  EXPECT_EQ(SumBFloat16(0x3f80, 0x3b81), 0x3f81);  // above the tie
  EXPECT_EQ(SumBFloat16(0x7f7f, 0x7f7f), 0x7f80);  // overflow to infinity
  EXPECT_EQ(SumBFloat16(0x7f80, 0xff80), 0x7fc0);  // inf - inf
  EXPECT_EQ(SumBFloat16(0x8000, 0x8000), 0x8000);  // -0 stays
}

TEST(ReductionTest, TheResultMayReplaceAnyContribution) {
  for (int target = 0; target < 3; ++target) {
    std::vector<std::vector<float>> data(3, std::vector<float>(5000));
    for (int r = 0; r < 3; ++r) {
      for (int i = 0; i < 5000; ++i) data[r][i] = static_cast<float>(i * (r + 1));
    }
    const void* in[3] = {data[0].data(), data[1].data(), data[2].data()};
    ReduceInOrder(Reduction::kSum, ElementType::kFloat32, in, 5000, data[target].data());
    for (int i = 0; i < 5000; ++i) ASSERT_EQ(data[target][i], static_cast<float>(i * 6));
  }
}

TEST(ReductionTest, ANaNWinsAMaximumWhereverItStands) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (int at = 0; at < 3; ++at) {
    double values[3] = {1, 2, 3};
    values[at] = nan;
    const void* in[3] = {&values[0], &values[1], &values[2]};
    double out = 0;
    ReduceInOrder(Reduction::kMax, ElementType::kFloat64, in, 1, &out);
    EXPECT_TRUE(std::isnan(out));
  }
}

TEST(ReductionTest, SharesTileTheElements) {
  for (int size = 1; size <= 6; ++size) {
    for (int64_t count = 0; count <= 20; ++count) {
      int64_t at = 0;
      for (int r = 0; r < size; ++r) {
        const ReductionShare share = ShareOf(count, r, size);
        EXPECT_EQ(share.begin, at);
        EXPECT_LE(share.end - share.begin, (count + size - 1) / size);
        at = share.end;
      }
      EXPECT_EQ(at, count);
    }
  }
}

}  // namespace
}  // namespace moesaic
