#include "parallel/data/gradient_buckets.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "parallel/comm/in_process.h"
#include "tests/parallel/data/step_case.h"

namespace moesaic {
namespace {

at::Tensor Sum(int p, int64_t micro_batches) {
  at::Tensor sum = at::zeros({kElements[p]}, at::kDouble);
  for (int64_t id = 0; id < micro_batches; ++id) {
    for (int use = 0; use < kUses[p]; ++use) sum += StepLeaf(p, use, id).to(at::kDouble);
  }
  return sum;
}

void WriteLeaf(GradientReducer& gradients, int p, int use, int64_t id) {
  const GradientSlot slot = gradients.Open(p, use, id);
  ASSERT_EQ(reinterpret_cast<uintptr_t>(slot.gradient.data_ptr()) % 64, 0u);
  if (slot.accumulate) {
    slot.gradient.add_(StepLeaf(p, use, id));
  } else {
    slot.gradient.copy_(StepLeaf(p, use, id));
  }
  gradients.Close(p, use, id);
}

struct Options {
  int64_t bucket_bytes = 1 << 20;
  bool lane = false;
  int64_t micro_batches = 7;
};

// Backward's order: rounds ascending, parameters descending, experts once a round for all
// micro-batches of the round. Ranks without a micro-batch report no dense leaf.
void RunStep(GradientReducer& gradients, const StepLayout& layout, int rank,
             std::span<const HeldParameter> parameters, int64_t micro_batches) {
  const MicroBatchPlan plan{micro_batches, layout.ranks};
  gradients.BeginStep({.micro_batches = micro_batches, .rounds = plan.rounds()});
  const int group = rank / layout.expert_size * layout.expert_size;
  for (int64_t round = 0; round < plan.rounds(); ++round) {
    for (int p = kParameters - 1; p >= 0; --p) {
      if (!IsHeldBy(parameters[p], rank)) continue;
      if (IsDense(parameters[p])) {
        for (int use = 0; use < kUses[p] && plan.At(round, rank); ++use) {
          WriteLeaf(gradients, p, use, *plan.At(round, rank));
        }
        continue;
      }
      const GradientSlot slot = gradients.Open(p, 0, round);
      if (!slot.accumulate) slot.gradient.zero_();
      for (int r = group; r < group + layout.expert_size; ++r) {
        if (plan.At(round, r)) slot.gradient.add_(StepLeaf(p, 0, *plan.At(round, r)));
      }
      gradients.Close(p, 0, round);
    }
  }
  gradients.Reduce();
}

// Gradients by (rank, parameter); undefined where a rank gets none.
std::vector<std::vector<at::Tensor>> StepGradients(const StepLayout& layout,
                                                   std::span<const HeldParameter> parameters,
                                                   const Options& options) {
  std::vector<std::vector<at::Tensor>> all(layout.ranks, std::vector<at::Tensor>(kParameters));
  RunRanks(layout.ranks, [&](Communicator& data) {
    std::unique_ptr<Lane> lane;
    if (options.lane) lane = std::make_unique<Lane>(data.Duplicate("reduction"));
    const std::unique_ptr<GradientReducer> gradients = MakeGradientBuckets(
        parameters, &data, {.bucket_bytes = options.bucket_bytes, .lane = lane.get()});
    for (int step = 0; step < 2; ++step) {  // the second starts from what the first left
      RunStep(*gradients, layout, data.rank(), parameters, options.micro_batches);
    }
    for (int p = 0; p < kParameters; ++p) {
      if (!IsDense(parameters[p]) && parameters[p].holders[0] != data.rank()) continue;
      all[data.rank()][p] = gradients->Gradient(p).clone();
    }
  });
  return all;
}

void ExpectSums(const StepLayout& layout, std::span<const HeldParameter> parameters,
                const Options& options) {
  const auto all = StepGradients(layout, parameters, options);
  for (int p = 0; p < kParameters; ++p) {
    const at::Tensor expected = Sum(p, options.micro_batches);
    const double largest = expected.abs().max().item<double>();
    for (int r = 0; r < layout.ranks; ++r) {
      if (!all[r][p].defined()) continue;
      const double off = (all[r][p].to(at::kDouble) - expected).abs().max().item<double>();
      EXPECT_LE(off, 1e-5 * largest) << "parameter " << p << " rank " << r << " of " << layout.ranks
                                     << ", expert size " << layout.expert_size;
    }
  }
}

TEST(GradientBucketsTest, SumsAreRightInEveryLayoutWithSmallAndLargeBuckets) {
  for (const StepLayout& layout : StepLayouts()) {
    const std::vector<HeldParameter> parameters = StepParameters(layout);
    ExpectSums(layout, parameters, {.bucket_bytes = 1, .lane = false, .micro_batches = 2});
    ExpectSums(layout, parameters, {.bucket_bytes = 700, .lane = false, .micro_batches = 7});
    ExpectSums(layout, parameters, {.bucket_bytes = 1 << 20, .lane = false, .micro_batches = 7});
  }
}

bool SameBits(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  return std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

TEST(GradientBucketsTest, ALaneBesideBackwardGivesTheSameBits) {
  for (const StepLayout& layout : {StepLayout{4, 2}, StepLayout{3, 3}, StepLayout{2, 1}}) {
    const std::vector<HeldParameter> parameters = StepParameters(layout);
    const auto without = StepGradients(layout, parameters, {.bucket_bytes = 700, .lane = false});
    const auto with = StepGradients(layout, parameters, {.bucket_bytes = 700, .lane = true});
    for (int r = 0; r < layout.ranks; ++r) {
      for (int p = 0; p < kParameters; ++p) EXPECT_TRUE(SameBits(without[r][p], with[r][p]));
    }
  }
}

// Holder sets that overlap in no regular way: every holder gives `rank + 1`, the primary gets the
// sum.
TEST(GradientBucketsTest, AnyHolderSetsAreServed) {
  const std::vector<HeldParameter> parameters{
      {20, 1, {3, 0, 1}}, {17, 1, {1}}, {31, 1, {0, 3}},      {5, 1, {3, 1}}, {64, 1, {2, 1, 0}},
      {9, 1, {0, 2}},     {40},         {12, 1, {3, 2, 1, 0}}};
  for (int64_t bytes : {int64_t{1}, int64_t{200}, int64_t{1} << 20}) {
    RunRanks(4, [&](Communicator& data) {
      const std::unique_ptr<GradientReducer> gradients =
          MakeGradientBuckets(parameters, &data, {.bucket_bytes = bytes});
      gradients->BeginStep({.micro_batches = 1, .rounds = 1});
      for (int p = 0; p < 8; ++p) {
        if (!IsHeldBy(parameters[p], data.rank())) continue;
        gradients->Open(p, 0, 0).gradient.fill_(data.rank() + 1 + 100 * p);
        gradients->Close(p, 0, 0);
      }
      gradients->Reduce();
      for (int p = 0; p < 8; ++p) {
        const std::vector<int> all{0, 1, 2, 3};
        const std::vector<int>& holders = IsDense(parameters[p]) ? all : parameters[p].holders;
        if (!IsDense(parameters[p]) && holders[0] != data.rank()) continue;
        float sum = 0;
        for (int h : holders) sum += static_cast<float>(h + 1 + 100 * p);
        EXPECT_TRUE(at::equal(gradients->Gradient(p), at::full({parameters[p].elements}, sum)));
      }
    });
  }
}

TEST(GradientBucketsTest, WhatNobodyReportsIsZeroAlsoAfterOtherSteps) {
  const std::vector<HeldParameter> parameters{{8}, {8, 1, {1, 0}}};
  RunRanks(2, [&](Communicator& data) {
    const std::unique_ptr<GradientReducer> gradients = MakeGradientBuckets(parameters, &data);
    for (int step = 0; step < 2; ++step) {
      gradients->BeginStep({.micro_batches = 2, .rounds = 1});
      for (int p = 0; p < 2 && step == 0; ++p) {
        gradients->Open(p, 0, 0).gradient.fill_(3);
        gradients->Close(p, 0, 0);
      }
      gradients->Reduce();
      const at::Tensor expected = at::full({8}, step == 0 ? 6.0f : 0.0f);
      EXPECT_TRUE(at::equal(gradients->Gradient(0), expected));
      if (data.rank() == 1) {
        EXPECT_TRUE(at::equal(gradients->Gradient(1), expected));
      }
    }
  });
}

TEST(GradientBucketsTest, MistakesOfCallersAreRefused) {
  const std::vector<HeldParameter> parameters{{8}, {8, 1, {1}}};
  RunRanks(2, [&](Communicator& data) {
    Lane lane(data.Duplicate("reduction"));
    const std::unique_ptr<GradientReducer> gradients =
        MakeGradientBuckets(parameters, &data, {.lane = &lane});
    gradients->BeginStep({.micro_batches = 2, .rounds = 1});
    if (data.rank() == 0) {
      EXPECT_THROW(gradients->Open(1, 0, 0), c10::Error);
    } else {
      gradients->Open(1, 0, 0).gradient.fill_(1);
      gradients->Close(1, 0, 0);
    }
    EXPECT_THROW(gradients->Open(2, 0, 0), c10::Error);
    EXPECT_THROW(gradients->Close(0, 0, 0), c10::Error);
    gradients->Open(0, 0, 0).gradient.fill_(1);
    EXPECT_THROW(gradients->Open(0, 0, 1), c10::Error);
    EXPECT_THROW(gradients->Gradient(0), c10::Error);
    gradients->Close(0, 0, 0);
    EXPECT_THROW(gradients->Open(0, 0, 1), c10::Error);  // its bucket is on its way
    gradients->Reduce();
    EXPECT_TRUE(at::equal(gradients->Gradient(0), at::full({8}, 2.0f)));
    if (data.rank() == 0) {
      EXPECT_THROW(gradients->Gradient(1), c10::Error);
    }
  });
}

}  // namespace
}  // namespace moesaic
