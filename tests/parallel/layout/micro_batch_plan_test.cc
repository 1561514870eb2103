#include "parallel/layout/micro_batch_plan.h"

#include <gtest/gtest.h>

namespace moesaic {
namespace {

TEST(MicroBatchPlanTest, EveryMicroBatchRunsOnceInAscendingBlocks) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (int64_t m = 0; m <= 40; ++m) {
      const MicroBatchPlan plan{m, ranks};
      int64_t next = 0;
      for (int r = 0; r < ranks; ++r) {
        int64_t ran = 0;
        for (int64_t round = 0; round < plan.rounds(); ++round) {
          if (const std::optional<int64_t> id = plan.At(round, r)) {
            EXPECT_EQ(*id, next++);
            ++ran;
          }
        }
        EXPECT_EQ(ran, plan.end(r) - plan.begin(r));
        EXPECT_GE(ran, m / ranks);
        EXPECT_LE(ran, (m + ranks - 1) / ranks);
      }
      EXPECT_EQ(next, m);
    }
  }
}

}  // namespace
}  // namespace moesaic
