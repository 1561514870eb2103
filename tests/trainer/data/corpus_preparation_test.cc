#include "trainer/data/corpus_preparation.h"

#include <gmock/gmock.h>

#include <cmath>
#include <set>

#include "tests/trainer/data/corpus_files.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

class CorpusPreparationTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    for (int i = 0; i < 2000; ++i) {
      text += "line " + std::to_string(i) +
              " of the text, and the number again: " + std::to_string(i) + "\n";
    }
    WriteBytes(folder_ / "text", text);
    const auto trained = TrainTokenizer({{folder_ / "text"}, folder_ / "bpe.model", 300});
    ASSERT_TRUE(trained.ok()) << trained.status();
    tokenizer_.emplace(*Tokenizer::Load(folder_ / "bpe.model"));
    preparation_.inputs = {folder_ / "text"};
    preparation_.output = folder_ / "train";
    preparation_.validation_output = folder_ / "validation";
  }

  absl::StatusOr<CorpusSummary> Prepare() {
    return PrepareCorpus(preparation_, *tokenizer_, [&](int64_t done, int64_t total) {
      progress_ = {done, total};
    });
  }

  // The documents of a part, decoded.
  std::vector<std::string> Documents(const std::string& prefix) {
    const auto tokens = IndexedTokens::Open(prefix);
    EXPECT_TRUE(tokens.ok()) << tokens.status();
    std::vector<std::string> documents;
    for (int64_t d = 0; d < tokens->index().documents(); ++d) {
      const int64_t begin = tokens->index().DocumentStart(d);
      std::vector<int64_t> wide(tokens->index().DocumentStart(d + 1) - begin);
      tokens->Read(begin, wide);
      EXPECT_EQ(wide.back() == tokenizer_->end_of_document(), preparation_.end_documents);
      documents.push_back(*tokenizer_->Decode(std::vector<int32_t>(wide.begin(), wide.end())));
    }
    return documents;
  }

  ScratchFolder folder_;
  std::optional<Tokenizer> tokenizer_;
  CorpusPreparation preparation_;
  std::pair<int64_t, int64_t> progress_;
};

TEST_F(CorpusPreparationTest, EveryDocumentGoesToOneSideWhole) {
  const auto summary = Prepare();
  ASSERT_TRUE(summary.ok()) << summary.status();
  const auto train = Documents(folder_ / "train");
  const auto validation = Documents(folder_ / "validation");
  EXPECT_EQ(train.size() + validation.size(), 2000u);
  EXPECT_GT(validation.size(), 60u);
  EXPECT_LT(validation.size(), 140u);
  std::string text;
  for (size_t t = 0, v = 0; t + v < 2000;) {  // both keep the order of the input
    const std::string prefix = "line " + std::to_string(t + v) + " ";
    const bool validates = v < validation.size() && validation[v].rfind(prefix, 0) == 0;
    text += (validates ? validation[v++] : train[t++]) + "\n";
  }
  EXPECT_EQ(text, FileBytes(folder_ / "text"));
  EXPECT_EQ(summary->input_bytes, static_cast<int64_t>(text.size()));
  EXPECT_EQ(progress_, std::pair(summary->input_bytes, summary->input_bytes));
  EXPECT_EQ(summary->validation.documents, static_cast<int64_t>(validation.size()));
}

TEST_F(CorpusPreparationTest, ADocumentKeepsItsSideWhenOthersCome) {
  ASSERT_TRUE(Prepare().ok());
  const auto before = Documents(folder_ / "validation");
  WriteBytes(folder_ / "more", "a new first line\nanother one\n");
  preparation_.inputs = {folder_ / "more", folder_ / "text"};
  ASSERT_TRUE(Prepare().ok());
  auto after = Documents(folder_ / "validation");
  after.erase(after.begin(), after.end() - static_cast<int64_t>(before.size()));
  EXPECT_EQ(after, before);
}

TEST_F(CorpusPreparationTest, TheFilesDoNotDependOnTheThreads) {
  ASSERT_TRUE(Prepare().ok());
  const std::string bin = FileBytes(folder_ / "train.bin");
  const std::string idx = FileBytes(folder_ / "train.idx");
  preparation_.threads = 3;
  ASSERT_TRUE(Prepare().ok());
  EXPECT_EQ(FileBytes(folder_ / "train.bin"), bin);
  EXPECT_EQ(FileBytes(folder_ / "train.idx"), idx);
}

TEST_F(CorpusPreparationTest, ALongDocumentIsOneDocumentAndKeepsItsText) {
  std::string text;
  for (int i = 0; i < 20; ++i) text += FileBytes(folder_ / "text");
  WriteBytes(folder_ / "long", text);  // more than one batch, on three threads
  preparation_.inputs = {folder_ / "long"};
  preparation_.separator = *DocumentSeparator::Parse("file");
  preparation_.validation_output.clear();
  preparation_.end_documents = false;
  preparation_.threads = 3;
  const auto summary = Prepare();
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->train.documents, 1);
  EXPECT_EQ(Documents(folder_ / "train"), std::vector<std::string>{text});
}

TEST_F(CorpusPreparationTest, ReportsTheUnigramEntropy) {
  WriteBytes(folder_ / "few", "\x01\x02\x02\x02");  // three of four tokens are equal
  preparation_.inputs = {folder_ / "few"};
  preparation_.validation_output.clear();
  preparation_.end_documents = false;
  const auto summary = Prepare();
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->train.tokens, 4);
  EXPECT_NEAR(summary->train.unigram_entropy, 0.25 * std::log(4) + 0.75 * std::log(4.0 / 3), 1e-12);
}

TEST_F(CorpusPreparationTest, AFailureLeavesTheOldFilesAlone) {
  ASSERT_TRUE(Prepare().ok());
  const std::string idx = FileBytes(folder_ / "train.idx");
  preparation_.separator = *DocumentSeparator::Parse("file");
  const auto one_sided = Prepare().status();
  EXPECT_EQ(one_sided.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(one_sided.message()), HasSubstr("of 1 documents"));
  EXPECT_EQ(FileBytes(folder_ / "train.idx"), idx);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "train.bin.tmp"));
}

TEST_F(CorpusPreparationTest, SaysWhatIsWrong) {
  preparation_.inputs.push_back(folder_ / "none");
  EXPECT_EQ(Prepare().status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "train.bin.tmp"));
  preparation_.inputs.pop_back();
  preparation_.validation_share = 1;
  EXPECT_EQ(Prepare().status().code(), absl::StatusCode::kInvalidArgument);
  preparation_.validation_share = 0.1;
  preparation_.threads = 0;
  EXPECT_EQ(Prepare().status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moesaic
