// N ranks give what one process gives, over data x expert parallel layouts.
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/equivalence/training_run.h"

namespace moesaic {
namespace {

constexpr int kSteps = 5;

struct Case {
  int expert;   // ranks a copy of the experts
  int copies;
  int experts;
};

std::string CaseName(const ::testing::TestParamInfo<Case>& info) {
  return "Ep" + std::to_string(info.param.expert) + "Copies" + std::to_string(info.param.copies) +
         "Experts" + std::to_string(info.param.experts);
}

class Equality : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/equality_" + CaseName({GetParam(), 0}) + "_" +
              std::to_string(getpid());
    std::filesystem::create_directories(folder_);
    spec_ = TinyJob(folder_, GetParam().experts);
    layout_ = {.ranks = GetParam().expert * GetParam().copies, .expert = GetParam().expert};
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string folder_;
  JobSpec spec_;
  RunLayout layout_;
};

TEST_P(Equality, ReproducibleModeIsBitEqualToOneProcess) {
  spec_.mutable_train()->set_reproducible(true);
  const RunResult one = TrainInProcess(spec_, {}, kSteps);
  EXPECT_LT(one.losses.back(), one.losses.front());
  ExpectSameBits(one, TrainInProcess(spec_, layout_, kSteps));
}

TEST_P(Equality, ReproducibleModeIsBitEqualInBf16) {
  spec_.mutable_train()->set_reproducible(true);
  spec_.mutable_train()->set_precision(BF16);
  ExpectSameBits(TrainInProcess(spec_, {}, kSteps), TrainInProcess(spec_, layout_, kSteps));
}

// Gradients and the weights after one plain SGD step; elementwise weights under AdamW cannot be
// compared, since its first step is nearly the sign of the gradient.
TEST_P(Equality, FastModeIsCloseAfterOneSgdStep) {
  spec_.mutable_train()->mutable_optimizer()->mutable_sgd()->set_lr(0.1);
  ExpectClose(TrainInProcess(spec_, {}, 1), TrainInProcess(spec_, layout_, 1), 1e-4, true);
}

TEST_P(Equality, FastModeFollowsTheReproducibleLossCurve) {
  const RunResult fast = TrainInProcess(spec_, layout_, kSteps);
  spec_.mutable_train()->set_reproducible(true);
  const RunResult exact = TrainInProcess(spec_, {}, kSteps);
  for (int step = 0; step < kSteps; ++step) {
    EXPECT_NEAR(fast.losses[step], exact.losses[step], 1e-4 * exact.losses[step]) << step;
  }
}

TEST_P(Equality, TheSameLayoutIsBitEqualRunToRun) {
  ExpectSameBits(TrainInProcess(spec_, layout_, 2), TrainInProcess(spec_, layout_, 2));
}

// bf16 rounds activations to 8 bits: losses agree with fp32 to 2 %.
TEST_P(Equality, Bf16FollowsFp32) {
  const RunResult exact = TrainInProcess(spec_, layout_, kSteps);
  spec_.mutable_train()->set_precision(BF16);
  const RunResult rounded = TrainInProcess(spec_, layout_, kSteps);
  for (int step = 0; step < kSteps; ++step) {
    EXPECT_NEAR(rounded.losses[step], exact.losses[step], 0.02 * exact.losses[step]) << step;
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const int experts : {8, 5}) {
    for (const int expert : {1, 2, 3, 4}) {
      for (const int copies : {1, 2}) cases.push_back({expert, copies, experts});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Layouts, Equality, ::testing::ValuesIn(Cases()), CaseName);

}  // namespace
}  // namespace moesaic
