// moesaic data, run in process, and how it shows its progress.
#include "launcher/verbs/data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "launcher/verbs/byte_progress.h"
#include "tests/launcher/verbs/run_moesaic.h"
#include "tests/trainer/data/corpus_files.h"

namespace moesaic {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class DataVerbs : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    for (int i = 0; i < 300; ++i) text += "some text, number " + std::to_string(i) + "\n";
    WriteBytes(text_, text);
  }
  VerbOutcome Tokenizer() {
    return RunMoesaic({"data", "tokenizer", "--input", text_, "--vocabulary", "300", "--output",
                       model_, "-o", "json"});
  }

  ScratchFolder folder_;
  std::string text_ = folder_ / "text";
  std::string model_ = folder_ / "sub/bpe.model";
};

TEST_F(DataVerbs, MakeTokenFilesFromText) {
  const VerbOutcome tokenizer = Tokenizer();
  ASSERT_EQ(tokenizer.exit_code, kExitOk) << tokenizer.err;
  EXPECT_EQ(tokenizer.json()["vocabulary"], 300);

  const VerbOutcome prepared = RunMoesaic(
      {"data", "prepare", "--tokenizer", model_, "--input", text_, "--output", folder_ / "train",
       "--validation-output", folder_ / "validation", "--validation-share", "0.2", "-o", "json"});
  ASSERT_EQ(prepared.exit_code, kExitOk) << prepared.err;
  const auto summary = prepared.json();
  for (const char* part : {"train", "validation"}) {
    const auto tokens = IndexedTokens::Open(folder_ / part);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_EQ(summary[part]["path"], folder_ / part);
    EXPECT_EQ(summary[part]["tokens"], tokens->tokens());
    EXPECT_EQ(summary[part]["documents"], tokens->index().documents());
    EXPECT_GT(summary[part]["unigram_entropy"], 1.0);
  }
  EXPECT_EQ(
      summary["train"]["documents"].get<int>() + summary["validation"]["documents"].get<int>(),
      300);
}

TEST_F(DataVerbs, AMissingFileIsAUsageError) {
  const VerbOutcome outcome = RunMoesaic(
      {"data", "prepare", "--tokenizer", model_, "--input", text_, "--output", folder_ / "train"});
  EXPECT_EQ(outcome.exit_code, kExitUsage);
  EXPECT_THAT(outcome.err, HasSubstr(model_));
  EXPECT_EQ(outcome.out, "");
}

TEST_F(DataVerbs, AWrongSeparatorIsAUsageError) {
  ASSERT_EQ(Tokenizer().exit_code, kExitOk);
  const VerbOutcome outcome =
      RunMoesaic({"data", "prepare", "--tokenizer", model_, "--input", text_, "--output",
                  folder_ / "train", "--document-separator", "a\\q"});
  EXPECT_EQ(outcome.exit_code, kExitUsage);
  EXPECT_THAT(outcome.err, HasSubstr("escapes are"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "train.bin"));
}

class HandClock : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Time now = absl::UnixEpoch();
};

TEST(ByteProgress, IsRedrawnOnATerminalAndPlainElsewhere) {
  HandClock clock;
  std::ostringstream terminal_text;
  std::ostringstream plain_text;
  {
    ByteProgress terminal("read", true, terminal_text, clock);
    ByteProgress plain("read", false, plain_text, clock);
    for (int i = 1; i <= 30; ++i) {
      clock.now += absl::Seconds(1);
      terminal.Update(i * 1000000, 90000000);
      plain.Update(i * 1000000, 90000000);
    }
  }
  EXPECT_EQ(plain_text.str(),
            "read 10 MB of 90 MB (11%), 1.0 MB/s, 1m20s left\n"
            "read 20 MB of 90 MB (22%), 1.0 MB/s, 1m10s left\n"
            "read 30 MB of 90 MB (33%), 1.0 MB/s, 1m00s left\n");
  EXPECT_THAT(terminal_text.str(), StartsWith("\r\x1b[Kread 1.0 MB of 90 MB (1%)"));
  EXPECT_THAT(terminal_text.str(), EndsWith("1m00s left\r\x1b[K"));
}

TEST(ByteProgress, WritesSizesForPeople) {
  EXPECT_EQ(BytesForPeople(0), "0 B");
  EXPECT_EQ(BytesForPeople(999), "999 B");
  EXPECT_EQ(BytesForPeople(1500), "1.5 kB");
  EXPECT_EQ(BytesForPeople(9949999), "9.9 MB");
  EXPECT_EQ(BytesForPeople(9960000), "10 MB");
  EXPECT_EQ(BytesForPeople(999600000), "1.0 GB");
}

}  // namespace
}  // namespace moesaic
