#include "trainer/checkpoint/format/coverage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/trainer/checkpoint/boxes.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::Status Prove(Shape shape, const std::vector<Box>& boxes) {
  std::vector<const Box*> pointers;
  for (const Box& box : boxes) pointers.push_back(&box);
  return ProveTiling(shape, std::move(pointers));
}

TEST(TilingTest, RandomTilingsAreProvedAndEveryDamageIsFound) {
  std::mt19937 random(2);
  for (int round = 0; round < 500; ++round) {
    std::vector<uint64_t> shape(1 + random() % 3);
    for (uint64_t& side : shape) side = 1 + random() % 9;
    std::vector<Box> boxes = RandomTiling(shape, static_cast<int>(random() % 12), &random);
    std::ranges::shuffle(boxes, random);
    ASSERT_TRUE(Prove(shape, boxes).ok());

    std::vector<Box> hole = boxes;
    hole.erase(hole.begin() + static_cast<std::ptrdiff_t>(random() % hole.size()));
    EXPECT_THAT(Prove(shape, hole).message(), HasSubstr("no shard holds"));

    std::vector<Box> overlap = boxes;
    overlap.push_back(RandomBox(shape, &random));
    EXPECT_THAT(Prove(shape, overlap).message(), HasSubstr("shards hold ["));
  }
}

TEST(TilingTest, AnEqualSumOfVolumesIsNotEnough) {
  const std::vector<uint64_t> shape = {4};
  const absl::Status proved = Prove(shape, {MakeBox({0}, {2}), MakeBox({1}, {2})});
  EXPECT_THAT(proved.message(), ::testing::AnyOf(HasSubstr("no shard holds [3:4]"),
                                                 HasSubstr("2 shards hold [1:2]")));
}

TEST(TilingTest, AScalarNeedsOneShard) {
  EXPECT_TRUE(Prove({}, {Box()}).ok());
  EXPECT_FALSE(Prove({}, {Box(), Box()}).ok());
  EXPECT_FALSE(Prove({}, {}).ok());
}

TEST(TilingTest, ManyShardsAreProvedQuickly) {
  const std::vector<uint64_t> shape = {1 << 14, 4};
  std::vector<Box> boxes;
  for (uint64_t i = 0; i < shape[0]; ++i) boxes.push_back(MakeBox({i, 0}, {1, 4}));
  EXPECT_TRUE(Prove(shape, boxes).ok());
}

TEST(TilingTest, BoxesMadeToBeSlowAreGivenUp) {
  std::vector<uint64_t> shape(6, 1 << 12);
  std::mt19937 random(3);
  std::vector<Box> boxes;
  for (int i = 0; i < 2000; ++i) boxes.push_back(RandomBox(shape, &random));
  EXPECT_FALSE(Prove(shape, boxes).ok());
}

class CoverageTest : public ::testing::Test {
 protected:
  CoverageTest() {
    Expect(MASTER, "a");
    Expect(ADAM_M, "a");
  }

  void Expect(ObjectKind kind, const std::string& name) {
    expected_.push_back({kind, name, ELEMENT_F32, {4, 2}});
    StoredObject* object = objects_.Add();
    object->set_kind(kind);
    object->set_name(name);
    object->set_element(ELEMENT_F32);
    object->add_shape(4);
    object->add_shape(2);
    *object->add_shards()->mutable_box() = MakeBox({0, 0}, {4, 2});
  }

  std::vector<std::string> Problems() { return FindCoverageProblems(expected_, objects_); }

  std::vector<ExpectedObject> expected_;
  google::protobuf::RepeatedPtrField<StoredObject> objects_;
};

TEST_F(CoverageTest, NamesWhatIsWrong) {
  EXPECT_THAT(Problems(), IsEmpty());
  objects_.Mutable(0)->mutable_shards(0)->mutable_box()->set_length(0, 3);
  EXPECT_THAT(Problems(), ElementsAre("object master/a: no shard holds [3:4, 0:2]"));
  *objects_.Mutable(0)->add_shards()->mutable_box() = MakeBox({2, 0}, {2, 2});
  EXPECT_THAT(Problems(), ElementsAre("object master/a: 2 shards hold [2:3, 0:2]"));
  objects_.Mutable(0)->set_name("b");
  EXPECT_THAT(Problems(),
              ElementsAre("object master/a is missing", "object master/b is not one of this job"));
  *objects_.Mutable(0) = objects_.Get(1);
  EXPECT_THAT(Problems(),
              ElementsAre("object adam_m/a comes twice", "object master/a is missing"));
  objects_.RemoveLast();
  objects_.Mutable(0)->set_kind(MASTER);
  objects_.Mutable(0)->set_element(ELEMENT_BF16);
  EXPECT_THAT(Problems(), ElementsAre("object master/a: is BF16 [4, 2] and not F32 [4, 2]",
                                      "object adam_m/a is missing"));
  EXPECT_THAT(ProveCoverage(expected_, objects_).message(), HasSubstr("is not complete"));
}

}  // namespace
}  // namespace moesaic
