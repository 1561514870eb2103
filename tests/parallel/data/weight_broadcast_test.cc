#include "parallel/data/weight_broadcast.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "parallel/comm/in_process.h"

namespace moesaic {
namespace {

TEST(WeightBroadcastTest, HoldersGetWhatThePrimaryHas) {
  const std::vector<HeldParameter> parameters{
      {6}, {7, 1, {2, 0}}, {3, 1, {1}}, {10, 1, {0, 1, 2, 3}}, {4, 1, {3, 2}}, {9, 1, {2, 0, 1}}};
  RunRanks(4, [&](Communicator& data) {
    std::vector<at::Tensor> weights;
    for (int p = 0; p < 6; ++p) {
      const at::ScalarType type = p % 2 == 0 ? at::kFloat : at::kBFloat16;
      weights.push_back(at::full({parameters[p].elements}, 10 * p + data.rank(), type));
    }
    BroadcastWeights(parameters, data, [&](int p) {
      EXPECT_TRUE(parameters[p].holders.size() > 1 && IsHeldBy(parameters[p], data.rank())) << p;
      return weights[p];
    });
    for (int p = 0; p < 6; ++p) {
      const bool shared = !IsDense(parameters[p]) && IsHeldBy(parameters[p], data.rank());
      const int from = shared ? parameters[p].holders[0] : data.rank();
      EXPECT_TRUE(at::equal(weights[p], at::full_like(weights[p], 10 * p + from))) << p;
    }
  });
}

TEST(WeightBroadcastTest, AWeightOfAnotherSizeIsRefused) {
  const std::vector<HeldParameter> parameters{{6, 1, {0, 1}}};
  EXPECT_THROW(RunRanks(2,
                        [&](Communicator& data) {
                          BroadcastWeights(parameters, data, [](int) { return at::zeros({5}); });
                        }),
               c10::Error);
}

}  // namespace
}  // namespace moesaic
