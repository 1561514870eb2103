// Files that Megatron's own writer wrote (tests/peers/make_megatron_golden.py) load here, and the
// writer here makes the same bytes.
#include <gmock/gmock.h>

#include "tests/trainer/data/corpus_files.h"
#include "trainer/data/indexed_tokens.h"

namespace moesaic {
namespace {

using Sequence = std::vector<int32_t>;

struct Golden {
  std::string name;
  TokenType type;
  int32_t limit;
};

class MegatronGolden : public ::testing::TestWithParam<Golden> {
 protected:
  std::string prefix() const { return "tests/trainer/data/golden/" + GetParam().name; }

  // Document d has d % 3 sequences, some of them empty.
  std::vector<std::vector<Sequence>> Documents() const {
    std::vector<std::vector<Sequence>> documents(12);
    for (int d = 0; d < 12; ++d) {
      documents[d].resize(d % 3);
      for (int s = 0; s < d % 3; ++s) {
        for (int t = 0; t < (5 * d + 3 * s) % 11; ++t) {
          documents[d][s].push_back((7919 * d + 104729 * s + 613 * t) % GetParam().limit);
        }
      }
    }
    return documents;
  }
};

TEST_P(MegatronGolden, Loads) {
  const auto tokens = IndexedTokens::Open(prefix());
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->index().type(), GetParam().type);
  std::vector<int64_t> expected;
  std::vector<int64_t> starts;
  for (const auto& document : Documents()) {
    starts.push_back(static_cast<int64_t>(expected.size()));
    for (const Sequence& sequence : document) {
      expected.insert(expected.end(), sequence.begin(), sequence.end());
    }
  }
  ASSERT_EQ(tokens->tokens(), static_cast<int64_t>(expected.size()));
  std::vector<int64_t> read(expected.size());
  tokens->Read(0, read);
  EXPECT_EQ(read, expected);
  ASSERT_EQ(tokens->index().documents(), 12);
  for (int d = 0; d < 12; ++d) EXPECT_EQ(tokens->index().DocumentStart(d), starts[d]);
}

TEST_P(MegatronGolden, IsWrittenByteForByte) {
  const ScratchFolder folder;
  auto writer = *IndexedTokenWriter::Create(folder / "c", GetParam().type);
  for (const auto& document : Documents()) {
    for (const Sequence& sequence : document) {
      ASSERT_TRUE(writer->Append(sequence).ok());
      writer->EndSequence();
    }
    writer->EndDocument();
  }
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_EQ(FileBytes(folder / "c.bin"), FileBytes(prefix() + ".bin"));
  EXPECT_EQ(FileBytes(folder / "c.idx"), FileBytes(prefix() + ".idx"));
}

INSTANTIATE_TEST_SUITE_P(Files, MegatronGolden,
                         ::testing::Values(Golden{"megatron_uint16", TokenType::kUint16, 50000},
                                           Golden{"megatron_int32", TokenType::kInt32, 200000},
                                           Golden{"megatron_uint8", TokenType::kUint8, 256}),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace moesaic
