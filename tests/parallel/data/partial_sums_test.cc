#include "parallel/data/partial_sums.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <bit>

namespace moesaic {
namespace {

TEST(PartialSumsTest, LeavesInOrderKeepALogarithmOfSums) {
  for (int64_t leaves = 1; leaves <= 64; ++leaves) {
    PartialSums sums(leaves);
    std::vector<at::Tensor> freed;
    for (int64_t i = 0; i < leaves; ++i) {
      sums.Add(SumTree::Leaf(i), at::full({1}, static_cast<float>(i)), freed);
      EXPECT_LE(static_cast<int>(sums.nodes().size()),
                std::bit_width(static_cast<uint64_t>(i + 1)));
    }
    EXPECT_EQ(sums.nodes().size(), 1u);
    EXPECT_EQ(static_cast<int64_t>(freed.size()), leaves - 1);
    const at::Tensor root = sums.TakeRoot(freed);
    EXPECT_EQ(root.item<float>(), static_cast<float>(leaves * (leaves - 1) / 2));
    EXPECT_TRUE(sums.nodes().empty());
  }
}

// In the order of micro-batches with two uses of which the second never has rows.
TEST(PartialSumsTest, LeavesThatAreZeroLetTheirSiblingsGoOn) {
  for (int64_t micro_batches = 1; micro_batches <= 32; ++micro_batches) {
    PartialSums sums(2 * micro_batches);
    std::vector<at::Tensor> freed;
    for (int64_t i = 0; i < micro_batches; ++i) {
      sums.Add(SumTree::Leaf(2 * i + 1), {}, freed);
      sums.Add(SumTree::Leaf(2 * i), at::full({1}, static_cast<float>(i)), freed);
      EXPECT_LE(static_cast<int>(sums.nodes().size()),
                std::bit_width(static_cast<uint64_t>(i + 1)));
    }
    EXPECT_EQ(static_cast<int64_t>(freed.size()), micro_batches - 1);
    EXPECT_EQ(sums.TakeRoot(freed).item<float>(),
              static_cast<float>(micro_batches * (micro_batches - 1) / 2));
  }
}

TEST(PartialSumsTest, TheRootOfZerosIsUndefined) {
  PartialSums sums(3);
  std::vector<at::Tensor> freed;
  for (int64_t i = 0; i < 3; ++i) sums.Add(SumTree::Leaf(i), {}, freed);
  EXPECT_FALSE(sums.TakeRoot(freed).defined());
  EXPECT_TRUE(freed.empty());
}

TEST(PartialSumsTest, TheRootOfNothingIsUndefined) {
  PartialSums sums(5);
  std::vector<at::Tensor> freed;
  EXPECT_FALSE(sums.TakeRoot(freed).defined());
}

TEST(PartialSumsTest, LeavesBelowANodeThatIsThereAreRefused) {
  PartialSums sums(8);
  std::vector<at::Tensor> freed;
  sums.Add({1, 1}, at::ones({1}), freed);
  EXPECT_THROW(sums.Add({0, 2}, at::ones({1}), freed), c10::Error);
  EXPECT_THROW(sums.Add({1, 1}, at::ones({1}), freed), c10::Error);
  // And the other way round, at the latest when the root is taken.
  PartialSums late(8);
  late.Add({0, 2}, at::ones({1}), freed);
  late.Add({1, 1}, at::ones({1}), freed);
  EXPECT_THROW(late.TakeRoot(freed), c10::Error);
}

}  // namespace
}  // namespace moesaic
