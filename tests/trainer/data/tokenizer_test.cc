#include "trainer/data/tokenizer.h"

#include <gmock/gmock.h>

#include <numeric>
#include <random>

#include "tests/trainer/data/corpus_files.h"
#include "trainer/data/document_reader.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

std::string SomeText() {
  const std::vector<std::string> words = {"in",    "the",  "beginning", "was",  "a",  "word", "and",
                                          "light", "upon", "deep",      "über", "né", "of",   "it"};
  std::mt19937 random(7);
  std::string text;
  for (int i = 0; i < 6000; ++i) {
    text += words[random() % words.size()];
    text += i % 11 == 10 ? "\n" : " ";
  }
  return text;
}

class TokenizerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new ScratchFolder;
    WriteBytes(*folder_ / "text", SomeText());
    const auto summary = TrainTokenizer({{*folder_ / "text"}, *folder_ / "bpe.model", 320});
    ASSERT_TRUE(summary.ok()) << summary.status();
  }
  static void TearDownTestSuite() { delete folder_; }

  static Tokenizer Loaded() {
    auto tokenizer = Tokenizer::Load(*folder_ / "bpe.model");
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return *std::move(tokenizer);
  }
  static void ExpectRoundTrip(const Tokenizer& tokenizer, const std::string& text) {
    const auto decoded = tokenizer.Decode(tokenizer.Encode(text));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, text);
  }

  static ScratchFolder* folder_;
};

ScratchFolder* TokenizerTest::folder_ = nullptr;

TEST_F(TokenizerTest, HasTheVocabularyAskedFor) {
  const Tokenizer tokenizer = Loaded();
  EXPECT_EQ(tokenizer.vocabulary(), 320);
  EXPECT_GE(tokenizer.end_of_document(), 0);
  EXPECT_LT(tokenizer.Encode("in the beginning was the word").size(), 12u);
}

TEST_F(TokenizerTest, RoundTripsExactly) {
  const Tokenizer tokenizer = Loaded();
  for (const std::string text :
       {"", " ", "  two  spaces ", "\n\ntabs\t\r\n", "the word", "日本語 ☃ 🙂",
        "\xe2\x96\x81marks\xe2\x96\x81", "<s></s><unk><0x0A>",
        "bad \xff\xc3 bytes \xed\xa0\x80\xf5", "cut \xe2\x96"}) {
    ExpectRoundTrip(tokenizer, text);
  }
  ExpectRoundTrip(tokenizer, std::string("nul\0nul", 7));
  ExpectRoundTrip(tokenizer, SomeText());
}

TEST_F(TokenizerTest, RoundTripsAnyBytes) {
  const Tokenizer tokenizer = Loaded();
  std::mt19937 random(11);
  for (int trial = 0; trial < 300; ++trial) {
    std::string text(random() % 60, '\0');
    for (char& c : text) c = static_cast<char>(random() % (trial % 2 == 0 ? 256 : 128));
    ExpectRoundTrip(tokenizer, text);
  }
}

TEST_F(TokenizerTest, PiecesOfADocumentGiveTheTokensOfTheWhole) {
  const Tokenizer tokenizer = Loaded();
  auto reader = DocumentReader::Open(*folder_ / "text", {"", false}, 37);
  std::vector<int32_t> in_pieces;
  TextPiece piece;
  while (*reader->Next(&piece)) {
    const auto tokens = tokenizer.Encode(piece.text);
    in_pieces.insert(in_pieces.end(), tokens.begin(), tokens.end());
  }
  EXPECT_EQ(in_pieces, tokenizer.Encode(SomeText()));
}

TEST_F(TokenizerTest, ACacheChangesNoToken) {
  const Tokenizer tokenizer = Loaded();
  EncodeCache cache;
  EXPECT_EQ(tokenizer.Encode(SomeText(), &cache), tokenizer.Encode(SomeText()));
  std::mt19937 random(13);
  const std::string alphabet = "inthebeg  \n\n\t\xff" + std::string("\xe2\x96\x81");
  for (int trial = 0; trial < 500; ++trial) {
    std::string text(random() % 200, ' ');
    for (char& c : text) c = alphabet[random() % alphabet.size()];
    EXPECT_EQ(tokenizer.Encode(text, &cache), tokenizer.Encode(text)) << text;
  }
}

TEST_F(TokenizerTest, TrainingIsDeterministic) {
  ASSERT_TRUE(TrainTokenizer({{*folder_ / "text"}, *folder_ / "again.model", 320}).ok());
  EXPECT_EQ(FileBytes(*folder_ / "again.model"), FileBytes(*folder_ / "bpe.model"));
  EXPECT_FALSE(std::filesystem::exists(*folder_ / "again.model.tmp"));
}

TEST_F(TokenizerTest, TrainsOnAShareOfALongText) {
  const auto summary =
      TrainTokenizer({{*folder_ / "text"}, *folder_ / "sampled.model", 300, 10000});
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->input_bytes, static_cast<int64_t>(SomeText().size()));
  EXPECT_GT(summary->sampled_bytes, 7000);
  EXPECT_LT(summary->sampled_bytes, 13000);
}

TEST_F(TokenizerTest, SaysWhatIsWrong) {
  EXPECT_EQ(TrainTokenizer({{*folder_ / "none"}, *folder_ / "m", 300}).status().code(),
            absl::StatusCode::kNotFound);
  const auto large = TrainTokenizer({{*folder_ / "text"}, *folder_ / "m", 50000}).status();
  EXPECT_EQ(large.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(large.message()), HasSubstr("50000"));
  EXPECT_EQ(TrainTokenizer({{*folder_ / "text"}, *folder_ / "m", 100}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(*folder_ / "m"));
  EXPECT_EQ(Tokenizer::Load(*folder_ / "none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Tokenizer::Load(*folder_ / "text").status().code(), absl::StatusCode::kInvalidArgument);
  const std::vector<int32_t> alien = {320};
  EXPECT_FALSE(Loaded().Decode(alien).ok());
}

}  // namespace
}  // namespace moesaic
