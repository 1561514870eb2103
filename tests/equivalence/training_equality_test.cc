// N ranks give what one process gives, over data x expert parallel layouts.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>

#include "parallel/layout/balanced_placement.h"
#include "tests/base/scratch_folder.h"
#include "tests/equivalence/training_run.h"
#include "trainer/catalog/expert_state.h"

namespace moesaic {
namespace {

constexpr int kSteps = 5;

struct Case {
  int expert;  // ranks a copy of the experts
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
    spec_ = TinyJob(folder_.path(), GetParam().experts);
    layout_ = {.ranks = GetParam().expert * GetParam().copies, .expert = GetParam().expert};
  }

  const ScratchFolder folder_;
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

// ---- Placements other than the even one: uneven, with several holders, by load.

// Any holders at all: at least one in each group.
std::vector<std::vector<std::vector<int>>> RandomHolders(const Mesh& mesh, int layers, int experts,
                                                         unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::vector<std::vector<int>>> holders(layers);
  for (auto& layer : holders) {
    layer.resize(experts);
    for (std::vector<int>& ranks : layer) {
      for (int group = 0; group < mesh.expert_groups(); ++group) {
        const auto members = mesh.expert_ranks(group);
        const size_t sure = random() % members.size();
        for (size_t i = 0; i < members.size(); ++i) {
          if (i == sure || random() % 3 == 0) ranks.push_back(members[i]);
        }
      }
      std::shuffle(ranks.begin(), ranks.end(), random);  // any may be the primary
    }
  }
  return holders;
}

std::vector<std::vector<std::vector<int>>> HoldersOf(const ExpertPlacement& placement) {
  std::vector<std::vector<std::vector<int>>> holders(placement.layers());
  for (int layer = 0; layer < placement.layers(); ++layer) {
    for (int e = 0; e < placement.experts(layer); ++e) {
      const auto ranks = placement.holders(layer, e);
      holders[layer].emplace_back(ranks.begin(), ranks.end());
    }
  }
  return holders;
}

// By the load that `state` recorded.
RunLayout ByLoad(RunLayout layout, const JobSpec& spec, const TrainingState& state, int copies) {
  const Mesh mesh = MeshOf(layout);
  const std::vector<int> experts = ExpertsOfLayers(spec.model());
  const ExpertLoad load = RecordedLoad(spec.model(), state);
  EXPECT_FALSE(load.empty());
  layout.holders = HoldersOf(
      BalancedPlacement({.mesh = &mesh, .experts = experts, .load = &load, .copies = copies}));
  return layout;
}

class Placements : public ::testing::Test {
 protected:
  void SetUp() override { spec_ = TinyJob(folder_.path(), 5); }

  const ScratchFolder folder_;
  JobSpec spec_;
};

TEST_F(Placements, SeveralHoldersAnywhereAreBitEqualToOneProcess) {
  spec_.mutable_train()->set_reproducible(true);
  const RunResult one = TrainInProcess(spec_, {}, 3);
  unsigned seed = 1;
  for (const auto& [expert, copies, per_node] :
       std::vector<std::array<int, 3>>{{2, 1, 1}, {4, 1, 2}, {3, 2, 2}, {2, 2, 4}}) {
    for (int draw = 0; draw < 2; ++draw, ++seed) {
      SCOPED_TRACE(::testing::Message() << expert << " x " << copies << ", seed " << seed);
      RunLayout layout = {.ranks = expert * copies, .expert = expert, .ranks_per_node = per_node};
      layout.holders = RandomHolders(MeshOf(layout), 2, 5, seed);
      ExpectSameBits(one, TrainInProcess(spec_, layout, 3));
    }
  }
}

TEST_F(Placements, SeveralHoldersAreCloseInFastMode) {
  spec_.mutable_train()->mutable_optimizer()->mutable_sgd()->set_lr(0.1);
  const RunResult one = TrainInProcess(spec_, {}, 1);
  for (const unsigned seed : {11, 12, 13}) {
    RunLayout layout = {.ranks = 4, .expert = 4, .ranks_per_node = 2};
    layout.holders = RandomHolders(MeshOf(layout), 2, 5, seed);
    ExpectClose(one, TrainInProcess(spec_, layout, 1), 1e-4, true);
    layout.expert = 2;
    layout.holders = RandomHolders(MeshOf(layout), 2, 5, seed);
    ExpectClose(one, TrainInProcess(spec_, layout, 1), 1e-4, true);
  }
}

TEST_F(Placements, APlacementThatChangesAtAResumeChangesNoBit) {
  spec_.mutable_train()->set_reproducible(true);
  const RunResult whole = TrainInProcess(spec_, {}, 6);
  const RunResult first = TrainInProcess(spec_, {.ranks = 2, .expert = 2}, 2);
  const RunResult second = TrainInProcess(
      spec_, ByLoad({.ranks = 4, .expert = 4, .ranks_per_node = 2}, spec_, first.state, 1), 2,
      &first);
  const RunResult third = TrainInProcess(
      spec_, ByLoad({.ranks = 3, .expert = 3, .ranks_per_node = 1}, spec_, second.state, 0), 2,
      &second);
  RunResult joined = third;
  joined.losses = joined.norms = joined.aux_losses = {};
  joined.routing = {};
  for (const RunResult& part : {first, second, third}) {
    const auto append = [](auto& to, const auto& more) {
      to.insert(to.end(), more.begin(), more.end());
    };
    append(joined.losses, part.losses);
    append(joined.norms, part.norms);
    append(joined.aux_losses, part.aux_losses);
    append(joined.routing, part.routing);
  }
  ExpectSameBits(whole, joined);
}

}  // namespace
}  // namespace moesaic
