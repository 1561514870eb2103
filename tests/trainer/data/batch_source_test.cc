#include "trainer/data/batch_source.h"

#include <gmock/gmock.h>

#include <numeric>

#include "tests/trainer/data/corpus_files.h"

namespace moesaic {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<int32_t> Range(int32_t begin, int32_t end) {
  std::vector<int32_t> tokens(end - begin);
  std::iota(tokens.begin(), tokens.end(), begin);
  return tokens;
}

class BatchSource : public ::testing::Test {
 protected:
  void Write(const std::string& name, const std::vector<std::vector<int32_t>>& documents) {
    WriteCorpus(folder_ / name, TokenType::kUint16, documents);
  }
  void Train(const std::string& name, double weight = 1) {
    DataSource* source = data_.add_train();
    source->set_path(folder_ / name);
    source->set_weight(weight);
  }
  void Validate(const std::string& name) { data_.add_validation()->set_path(folder_ / name); }

  ScratchFolder folder_;
  DataSpec data_;
};

TEST_F(BatchSource, ASampleCoversSequencePlusOneTokens) {
  Write("c", {Range(0, 13)});
  const auto file = SampleFile::Open(folder_ / "c", {4, 100, false});
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->samples(), 3);
  SampleBatch batch;
  ASSERT_TRUE(file->Append(2, &batch).ok());
  EXPECT_THAT(batch.tokens, ElementsAre(8, 9, 10, 11));
  EXPECT_THAT(batch.targets, ElementsAre(9, 10, 11, 12));
  EXPECT_THAT(batch.document_starts, IsEmpty());
  EXPECT_EQ(batch.target_count, 4);
}

TEST_F(BatchSource, WithBoundariesATokenThatStartsADocumentIsNoTarget) {
  Write("c", {Range(0, 3), {}, Range(3, 8), Range(8, 20)});
  const auto file = SampleFile::Open(folder_ / "c", {4, 100, true});
  SampleBatch batch;
  ASSERT_TRUE(file->Append(0, &batch).ok());  // 0 1 2 | 3
  ASSERT_TRUE(file->Append(1, &batch).ok());  // 4 5 6 7, and 8 starts a document
  ASSERT_TRUE(file->Append(2, &batch).ok());  // | 8 9 10 11
  EXPECT_THAT(batch.targets, ElementsAre(1, 2, -1, 4, 5, 6, 7, -1, 9, 10, 11, 12));
  EXPECT_THAT(batch.document_starts, ElementsAre(0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_EQ(batch.target_count, 10);
}

TEST_F(BatchSource, CountsTargetsWithoutReadingTokens) {
  std::vector<std::vector<int32_t>> documents;
  for (int32_t i = 0; i < 40; ++i) documents.push_back(Range(0, i % 7));
  Write("a", documents);
  Write("b", {Range(0, 50)});
  Train("a", 2);
  Train("b", 1);
  for (const bool boundaries : {false, true}) {
    const auto train = TrainingData::Open(data_, {5, 100, boundaries}, 3);
    ASSERT_TRUE(train.ok()) << train.status();
    for (int64_t first = 0; first < 60; first += 7) {
      const auto batch = train->Read(first, 7);
      const auto targets = std::count_if(batch->targets.begin(), batch->targets.end(),
                                         [](int64_t target) { return target >= 0; });
      EXPECT_EQ(train->CountTargets(first, 7), targets);
      EXPECT_EQ(batch->target_count, targets);
    }
  }
}

TEST_F(BatchSource, TrainingReadsTheSamplesThatTheIndexPlaces) {
  Write("a", {Range(0, 41)});
  Write("b", {Range(100, 141)});
  Train("a", 3);
  Train("b", 1);
  const auto train = TrainingData::Open(data_, {4, 200, false}, 9);
  ASSERT_TRUE(train.ok()) << train.status();
  EXPECT_EQ(train->samples(), 20);
  const auto batch = train->Read(5, 20);
  ASSERT_EQ(batch->tokens.size(), 80u);
  for (int64_t i = 0; i < 20; ++i) {
    const SamplePlace place = train->Place(5 + i);
    EXPECT_EQ(batch->tokens[i * 4], place.source * 100 + place.sample * 4);
  }
}

TEST_F(BatchSource, C5AnEpochHasEveryTokenOnceHoweverItIsCut) {
  Write("a", {Range(0, 41)});
  Train("a");
  const auto train = TrainingData::Open(data_, {4, 100, false}, 9);
  const auto whole = train->Read(0, 10);
  std::vector<int64_t> sorted = whole->tokens;
  std::sort(sorted.begin(), sorted.end());
  std::vector<int64_t> all(40);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(sorted, all);
  std::vector<int64_t> in_parts;
  for (const auto& [first, count] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 3}, {3, 1}, {4, 6}}) {
    const auto part = train->Read(first, count);
    in_parts.insert(in_parts.end(), part->tokens.begin(), part->tokens.end());
  }
  EXPECT_EQ(in_parts, whole->tokens);
}

TEST_F(BatchSource, ATokenOutsideTheVocabularyNamesFileAndPosition) {
  Write("c", {{1, 2, 3, 4, 5, 99, 7, 8, 9}});
  Train("c");
  const auto train = TrainingData::Open(data_, {4, 99, false}, 1);
  const auto status = train->Read(0, 2).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder_ / "c.bin"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("token 99 at position 5"));
}

TEST_F(BatchSource, TooFewTokensForOneSampleIsAnError) {
  Write("c", {Range(0, 4)});
  Train("c");
  EXPECT_EQ(TrainingData::Open(data_, {4, 99, false}, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(TrainingData::Open(data_, {3, 99, false}, 1).ok());
}

TEST_F(BatchSource, ValidationReadsItsSourcesInOrder) {
  Write("a", {Range(0, 9)});
  Write("b", {Range(50, 63)});
  Validate("a");
  Validate("b");
  const auto all = ValidationData::Open(data_, {4, 100, false}, 0);
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->samples(), 5);
  const auto batch = all->Read(1, 2);
  EXPECT_THAT(batch->tokens, ElementsAre(4, 5, 6, 7, 50, 51, 52, 53));
  EXPECT_EQ(all->CountTargets(0, 5), 20);
  EXPECT_EQ(ValidationData::Open(data_, {4, 100, false}, 3)->samples(), 3);
  EXPECT_EQ(ValidationData::Open(DataSpec(), {4, 100, false}, 3)->samples(), 0);
  data_.mutable_validation(1)->set_weight(2);
  EXPECT_FALSE(ValidationData::Open(data_, {4, 100, false}, 0).ok());
}

}  // namespace
}  // namespace moesaic
