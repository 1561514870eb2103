#include "trainer/checkpoint/format/box.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "tests/trainer/checkpoint/boxes.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

// The flat indices, in `shape`, of the elements of a box, in order.
std::vector<uint64_t> FlatIndices(const Box& box, Shape shape) {
  std::vector<uint64_t> indices = {0};
  for (size_t dim = 0; dim < shape.size(); ++dim) {
    std::vector<uint64_t> next;
    for (uint64_t index : indices) {
      for (uint64_t i = 0; i < box.length(static_cast<int>(dim)); ++i) {
        next.push_back(index * shape[dim] + box.offset(static_cast<int>(dim)) + i);
      }
    }
    indices = std::move(next);
  }
  return indices;
}

TEST(BoxTest, SizesThatOverflowAreNoSizes) {
  const std::vector<uint64_t> huge = {1ull << 32, 1ull << 32};
  EXPECT_FALSE(CheckedElements(huge));
  const std::vector<uint64_t> large = {1ull << 62};
  EXPECT_TRUE(CheckedElements(large));
  EXPECT_FALSE(CheckedBytes(ELEMENT_F32, large));
  EXPECT_FALSE(CheckedBytes(ELEMENT_UNSPECIFIED, {}));
  EXPECT_EQ(CheckedBytes(ELEMENT_BF16, {}), 2u);
}

TEST(BoxTest, BoxesOutsideTheTensorAreRefused) {
  const std::vector<uint64_t> shape = {4, 6};
  EXPECT_TRUE(ValidateBox(MakeBox({1, 2}, {3, 4}), shape).ok());
  EXPECT_FALSE(ValidateBox(MakeBox({1, 2}, {4, 4}), shape).ok());
  EXPECT_FALSE(ValidateBox(MakeBox({1, 2}, {0, 4}), shape).ok());
  EXPECT_FALSE(ValidateBox(MakeBox({1}, {1}), shape).ok());
  EXPECT_THAT(ValidateBox(MakeBox({UINT64_MAX, 0}, {2, 1}), shape).message(),
              HasSubstr("outside the tensor's shape [4, 6]"));
}

TEST(BoxTest, FlatRangesBecomeBoxesInOrder) {
  for (const std::vector<uint64_t>& shape :
       {std::vector<uint64_t>{7}, {3, 5}, {2, 3, 4}, {1, 4, 1, 3}}) {
    const uint64_t elements = *CheckedElements(shape);
    for (uint64_t begin = 0; begin < elements; ++begin) {
      for (uint64_t end = begin + 1; end <= elements; ++end) {
        std::vector<uint64_t> covered;
        const std::vector<Box> boxes = BoxesOfFlatRange(shape, begin, end);
        EXPECT_LE(boxes.size(), 2 * shape.size() - 1);
        for (const Box& box : boxes) {
          ASSERT_TRUE(ValidateBox(box, shape).ok()) << DescribeBox(box);
          const std::vector<uint64_t> part = FlatIndices(box, shape);
          covered.insert(covered.end(), part.begin(), part.end());
        }
        std::vector<uint64_t> wanted(end - begin);
        std::iota(wanted.begin(), wanted.end(), begin);
        ASSERT_EQ(covered, wanted) << DescribeShape(shape) << " " << begin << " " << end;
      }
    }
  }
}

TEST(BoxTest, RunsAreTheCommonElementsInOrder) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::vector<uint64_t> shape(1 + random() % 4);
    for (uint64_t& side : shape) side = 1 + random() % 5;
    const Box source = RandomBox(shape, &random), target = RandomBox(shape, &random);
    const std::vector<uint64_t> in_source = FlatIndices(source, shape);
    const std::vector<uint64_t> in_target = FlatIndices(target, shape);
    std::vector<uint64_t> common;
    std::ranges::set_intersection(in_source, in_target, std::back_inserter(common));

    std::vector<uint64_t> walked;
    RunCursor cursor(source, target);
    for (ElementRun run; cursor.Next(&run);) {
      for (uint64_t i = 0; i < run.count; ++i) {
        ASSERT_EQ(in_source.at(run.source + i), in_target.at(run.target + i));
        walked.push_back(in_source[run.source + i]);
      }
    }
    ASSERT_EQ(walked, common) << DescribeBox(source) << " " << DescribeBox(target);
    EXPECT_EQ(Intersect(source, target).has_value(), !common.empty());
  }
}

TEST(BoxTest, EqualBoxesAreOneRun) {
  const Box box = MakeBox({1, 0, 2}, {2, 3, 4});
  RunCursor cursor(box, box);
  ElementRun run;
  ASSERT_TRUE(cursor.Next(&run));
  EXPECT_EQ(run.count, 24u);
  EXPECT_FALSE(cursor.Next(&run));
}

}  // namespace
}  // namespace moesaic
