#include "trainer/loop/step_sums.h"

#include <gtest/gtest.h>

#include <cmath>

#include "parallel/comm/in_process.h"
#include "parallel/layout/micro_batch_plan.h"

namespace moesaic {
namespace {

constexpr int kMicroBatches = 7, kParameters = 5;

double Loss(int64_t micro_batch) { return std::sin(1.0 + static_cast<double>(micro_batch)); }

// What `ranks` ranks compute together, as seen by rank 0.
struct Totals {
  double loss, aux, norm, load;
  bool operator==(const Totals&) const = default;
};

Totals Compute(int ranks) {
  std::vector<Totals> seen(ranks);
  const MicroBatchPlan plan{kMicroBatches, ranks};
  RunRanks(ranks, [&](Communicator& data) {
    StepSums sums({kMicroBatches, kParameters, 1, 4});
    for (int64_t mb = plan.begin(data.rank()); mb < plan.end(data.rank()); ++mb) {
      sums.SetMicroBatch(mb, Loss(mb), 0.5 * Loss(mb));
      sums.AddExpertCounts(0, std::vector<int64_t>{mb, 1, 2, 3});
    }
    for (int id = 0; id < kParameters; ++id) {
      if (id % ranks == data.rank()) sums.SetSquaredNorm(id, 0.1 * (id + 1));
    }
    if (data.rank() == 0) sums.SetControl({.stop = false, .snapshot = true, .hold_snapshots = false});
    sums.Reduce(data);
    EXPECT_TRUE(sums.control().snapshot);
    EXPECT_FALSE(sums.control().stop);
    seen[data.rank()] = {sums.loss_sum(), sums.aux_loss(), sums.gradient_norm(),
                         sums.LoadMaxOverMean(0, 4)};
  });
  for (const Totals& totals : seen) EXPECT_EQ(totals, seen[0]);
  return seen[0];
}

TEST(StepSums, BitsDoNotDependOnTheNumberOfRanks) {
  const Totals one = Compute(1);
  for (const int ranks : {2, 3, 4, 7}) EXPECT_EQ(Compute(ranks), one) << ranks << " ranks";
  EXPECT_NEAR(one.norm, std::sqrt(1.5), 1e-12);
  EXPECT_DOUBLE_EQ(one.load, 21.0 * 4 / 63);  // counts 21, 7, 14, 21
}

}  // namespace
}  // namespace moesaic
