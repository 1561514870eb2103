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
  double loss, aux, norm;
  std::vector<int64_t> counts, fan_out, others;
  bool operator==(const Totals&) const = default;
};

Totals Compute(int ranks) {
  std::vector<Totals> seen(ranks);
  const MicroBatchPlan plan{kMicroBatches, ranks};
  RunRanks(ranks, [&](Communicator& data) {
    StepSums sums({kMicroBatches, kParameters, 1, 4});
    for (int64_t mb = plan.begin(data.rank()); mb < plan.end(data.rank()); ++mb) {
      sums.SetMicroBatch(mb, Loss(mb), 0.5 * Loss(mb));
      sums.AddRouting(0, {.counts = {mb, 1, 2, 3},
                          .fan_out = {1, 0, mb},
                          .nulls = mb,
                          .dropped = 2,
                          .wire_rows = 3,
                          .entropy = 1000 * mb,
                          .best = {}});
    }
    for (int id = 0; id < kParameters; ++id) {
      if (id % ranks == data.rank()) sums.SetSquaredNorm(id, 0.1 * (id + 1));
    }
    if (data.rank() == 0) {
      sums.SetControl({.stop = false, .snapshot = true, .hold_snapshots = false});
    }
    sums.Reduce(data);
    EXPECT_TRUE(sums.control().snapshot);
    EXPECT_FALSE(sums.control().stop);
    const LayerRouting routing = sums.Routing(0, 4);
    seen[data.rank()] = {
        sums.loss_sum(),
        sums.aux_loss(),
        sums.gradient_norm(),
        routing.counts,
        routing.fan_out,
        {routing.nulls, routing.dropped, routing.wire_rows, routing.entropy}};
  });
  for (const Totals& totals : seen) EXPECT_EQ(totals, seen[0]);
  return seen[0];
}

TEST(StepSums, BitsDoNotDependOnTheNumberOfRanks) {
  const Totals one = Compute(1);
  for (const int ranks : {2, 3, 4, 7}) EXPECT_EQ(Compute(ranks), one) << ranks << " ranks";
  EXPECT_NEAR(one.norm, std::sqrt(1.5), 1e-12);
  EXPECT_EQ(one.counts, (std::vector<int64_t>{21, 7, 14, 21}));
  EXPECT_EQ(one.fan_out, (std::vector<int64_t>{7, 0, 21, 0, 0}));
  EXPECT_EQ(one.others, (std::vector<int64_t>{21, 14, 21, 21000}));
}

}  // namespace
}  // namespace moesaic
