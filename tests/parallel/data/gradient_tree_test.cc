#include "parallel/data/gradient_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "base/mutex.h"
#include "parallel/comm/in_process.h"
#include "parallel/layout/sum_tree.h"
#include "tests/parallel/data/step_case.h"

namespace moesaic {
namespace {

// The root from its definition, over leaves that are all there.
at::Tensor Root(int p, const SumTree& tree, SumNode node) {
  if (node.level == 0) return StepLeaf(p, node.index % kUses[p], node.index / kUses[p]);
  const SumNode left{node.level - 1, node.index * 2};
  const SumNode right = SumTree::Sibling(left);
  const at::Tensor sum = Root(p, tree, left);
  return tree.Empty(right) ? sum : sum + Root(p, tree, right);
}

std::vector<at::Tensor> Expected(int64_t micro_batches) {
  std::vector<at::Tensor> roots;
  for (int p = 0; p < kParameters; ++p) {
    const SumTree tree(micro_batches * kUses[p]);
    roots.push_back(Root(p, tree, tree.root()) + 0.0f);
  }
  return roots;
}

bool SameBits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.is_contiguous() && b.is_contiguous() &&
         std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

enum class ZeroLeaves { kReported, kLeftOut, kEither };

struct Report {
  int64_t micro_batches = 0;
  ZeroLeaves zeros = ZeroLeaves::kReported;
  uint32_t seed = 0;
  int64_t batch_bytes = 1 << 20;
};

// One rank's leaves, in an order of its own.
void ReportLeaves(GradientReducer& gradients, const StepLayout& layout, const Report& report,
                  std::span<const HeldParameter> parameters, int rank) {
  struct Leaf {
    int parameter, use;
    int64_t micro_batch;
  };
  std::mt19937 random(report.seed + rank);
  std::vector<Leaf> leaves;
  for (int p = 0; p < kParameters; ++p) {
    for (int64_t id : MicroBatchesOf(layout, parameters[p], rank, report.micro_batches)) {
      const bool skip = report.zeros == ZeroLeaves::kLeftOut ||
                        (report.zeros == ZeroLeaves::kEither && random() % 2 == 0);
      if (!HasRows(p, id) && skip) continue;
      for (int use = 0; use < kUses[p]; ++use) leaves.push_back({p, use, id});
    }
  }
  std::shuffle(leaves.begin(), leaves.end(), random);
  for (const Leaf& leaf : leaves) {
    const GradientSlot slot = gradients.Open(leaf.parameter, leaf.use, leaf.micro_batch);
    ASSERT_FALSE(slot.accumulate);
    ASSERT_EQ(reinterpret_cast<uintptr_t>(slot.gradient.data_ptr()) % 64, 0u);
    slot.gradient.copy_(StepLeaf(leaf.parameter, leaf.use, leaf.micro_batch));
    gradients.Close(leaf.parameter, leaf.use, leaf.micro_batch);
  }
}

void ExpectRoots(const StepLayout& layout, std::span<const Report> steps) {
  const std::vector<HeldParameter> parameters = StepParameters(layout);
  Mutex mu;
  std::vector<int> roots(kParameters, 0);
  RunRanks(layout.ranks, [&](Communicator& data) {
    const std::unique_ptr<GradientReducer> gradients =
        MakeGradientTree(parameters, &data, {.batch_bytes = steps[0].batch_bytes});
    for (const Report& report : steps) {
      const std::vector<at::Tensor> expected = Expected(report.micro_batches);
      gradients->BeginStep({.micro_batches = report.micro_batches});
      ReportLeaves(*gradients, layout, report, parameters, data.rank());
      gradients->Reduce();
      for (int p = 0; p < kParameters; ++p) {
        if (!IsDense(parameters[p]) && parameters[p].holders[0] != data.rank()) continue;
        EXPECT_TRUE(SameBits(gradients->Gradient(p), expected[p]))
            << "parameter " << p << " of rank " << data.rank() << " of " << layout.ranks
            << ", expert size " << layout.expert_size;
        MutexLock lock(&mu);
        ++roots[p];
      }
    }
  });
  const int count = static_cast<int>(steps.size());
  for (int p = 0; p < kParameters; ++p) {
    EXPECT_EQ(roots[p], IsDense(parameters[p]) ? layout.ranks * count : count);
  }
}

TEST(GradientTreeTest, TheBitsDependOnNoLayoutAndNoOrder) {
  uint32_t seed = 0;
  for (const StepLayout& layout : StepLayouts()) {
    for (int64_t micro_batches : {1, 2, 5, 8, 11}) {
      const Report step{.micro_batches = micro_batches, .seed = seed += 100};
      ExpectRoots(layout, std::span(&step, 1));
    }
  }
}

TEST(GradientTreeTest, LeavesOfZeroRowsMayBeReportedOrLeftOut) {
  uint32_t seed = 7;
  for (const StepLayout& layout : StepLayouts()) {
    for (ZeroLeaves zeros : {ZeroLeaves::kLeftOut, ZeroLeaves::kEither}) {
      const Report step{.micro_batches = 11, .zeros = zeros, .seed = seed += 100};
      ExpectRoots(layout, std::span(&step, 1));
    }
  }
}

TEST(GradientTreeTest, StepsOfDifferentSizesFollowEachOtherInSmallBatches) {
  const std::vector<Report> steps{{.micro_batches = 9, .seed = 1, .batch_bytes = 300},
                                  {.micro_batches = 4, .zeros = ZeroLeaves::kLeftOut, .seed = 2},
                                  {.micro_batches = 16, .seed = 3}};
  ExpectRoots({4, 2}, steps);
  ExpectRoots({6, 3}, steps);
}

TEST(GradientTreeTest, AStepWithoutLeavesIsZero) {
  const std::vector<HeldParameter> parameters{{8}, {8, 1, {1, 0}}};
  RunRanks(2, [&](Communicator& data) {
    const std::unique_ptr<GradientReducer> gradients = MakeGradientTree(parameters, &data);
    for (int step = 0; step < 2; ++step) {
      gradients->BeginStep({.micro_batches = 3});
      if (step == 0 && data.rank() == 0) {
        for (int p = 0; p < 2; ++p) {
          gradients->Open(p, 0, 1).gradient.fill_(2);
          gradients->Close(p, 0, 1);
        }
      }
      gradients->Reduce();
      const float expected = step == 0 ? 2.0f : 0.0f;
      EXPECT_TRUE(SameBits(gradients->Gradient(0), at::full({8}, expected)));
      if (data.rank() == 1) {
        EXPECT_TRUE(SameBits(gradients->Gradient(1), at::full({8}, expected)));
      } else {
        EXPECT_THROW(gradients->Gradient(1), c10::Error);
      }
    }
  });
}

TEST(GradientTreeTest, MistakesOfCallersAreRefused) {
  const std::vector<HeldParameter> parameters{{8, 2}, {8, 1, {1}}};
  RunRanks(2, [&](Communicator& data) {
    const std::unique_ptr<GradientReducer> gradients = MakeGradientTree(parameters, &data);
    gradients->BeginStep({.micro_batches = 3});
    EXPECT_THROW(gradients->Open(0, 2, 0), c10::Error);
    EXPECT_THROW(gradients->Open(0, 0, 3), c10::Error);
    EXPECT_THROW(gradients->Close(0, 0, 0), c10::Error);
    if (data.rank() == 0) {
      EXPECT_THROW(gradients->Open(1, 0, 0), c10::Error);
    }
    gradients->Open(0, 1, data.rank());
    EXPECT_THROW(gradients->Open(0, 1, data.rank()), c10::Error);
    EXPECT_THROW(gradients->Reduce(), c10::Error);  // a slot is open, on both ranks
    gradients->Close(0, 1, data.rank());
    EXPECT_THROW(gradients->Open(0, 1, data.rank()), c10::Error);
    EXPECT_THROW(gradients->Gradient(0), c10::Error);
  });
}

// Ranks that disagree on who runs a micro-batch.
TEST(GradientTreeTest, ALeafOfTwoRanksIsRefused) {
  const std::vector<HeldParameter> parameters{{8}};
  EXPECT_THROW(RunRanks(2,
                        [&](Communicator& data) {
                          const std::unique_ptr<GradientReducer> gradients =
                              MakeGradientTree(parameters, &data);
                          gradients->BeginStep({.micro_batches = 4});
                          for (int64_t id = 0; id < (data.rank() == 0 ? 2 : 1); ++id) {
                            gradients->Open(0, 0, id).gradient.fill_(1);
                            gradients->Close(0, 0, id);
                          }
                          gradients->Reduce();
                        }),
               c10::Error);
}

}  // namespace
}  // namespace moesaic
