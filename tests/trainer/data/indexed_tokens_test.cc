#include "trainer/data/indexed_tokens.h"

#include <gmock/gmock.h>

#include <cstring>
#include <numeric>

#include "tests/trainer/data/corpus_files.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<int64_t> ReadAll(const IndexedTokens& tokens) {
  std::vector<int64_t> all(tokens.tokens());
  tokens.Read(0, all);
  return all;
}

TEST(IndexedTokens, ReadsWhatWasWrittenInEveryElementType) {
  const ScratchFolder folder;
  for (const TokenType type : {TokenType::kUint8, TokenType::kInt8, TokenType::kInt16,
                               TokenType::kInt32, TokenType::kInt64, TokenType::kUint16}) {
    const std::string prefix = folder / "c";
    WriteCorpus(prefix, type, {{1, 2, 3}, {}, {127}, {4, 5}});
    const auto tokens = IndexedTokens::Open(prefix);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_EQ(tokens->index().type(), type);
    EXPECT_EQ(tokens->index().documents(), 4);
    EXPECT_THAT(ReadAll(*tokens), ElementsAre(1, 2, 3, 127, 4, 5));
    std::vector<int64_t> part(2);
    tokens->Read(2, part);
    EXPECT_THAT(part, ElementsAre(3, 127));
  }
}

TEST(IndexedTokens, ReadsTheWholeRangeOfItsElementType) {
  const ScratchFolder folder;
  WriteCorpus(folder / "a", TokenType::kUint16, {{65535, 0}});
  EXPECT_THAT(ReadAll(*IndexedTokens::Open(folder / "a")), ElementsAre(65535, 0));
  WriteCorpus(folder / "b", TokenType::kInt32, {{2147483647, 65536}});
  EXPECT_THAT(ReadAll(*IndexedTokens::Open(folder / "b")), ElementsAre(2147483647, 65536));
}

TEST(IndexedTokens, FindsDocumentStartsInARange) {
  const ScratchFolder folder;
  WriteCorpus(folder / "c", TokenType::kUint16, {{1, 2, 3}, {}, {4}, {5, 6}, {}});
  const auto tokens = IndexedTokens::Open(folder / "c");
  const TokenIndex& index = tokens->index();
  EXPECT_THAT(index.DocumentStarts(0, 6), ElementsAre(0, 3, 4));  // an empty one shares its start
  EXPECT_THAT(index.DocumentStarts(1, 2), IsEmpty());
  EXPECT_THAT(index.DocumentStarts(1, 3), ElementsAre(3));
  EXPECT_THAT(index.DocumentStarts(4, 100), ElementsAre(4));  // not the empty one at the end
  EXPECT_EQ(index.DocumentStart(5), 6);
}

TEST(IndexedTokens, ADocumentMayHaveSeveralSequences) {
  const ScratchFolder folder;
  auto writer = *IndexedTokenWriter::Create(folder / "c", TokenType::kInt32);
  const std::vector<int32_t> two = {1, 2};
  ASSERT_TRUE(writer->Append(two).ok());
  writer->EndSequence();
  ASSERT_TRUE(writer->Append(two).ok());
  writer->EndDocument();
  ASSERT_TRUE(writer->Append(two).ok());
  ASSERT_TRUE(writer->Finish().ok());  // ends the last document
  const auto tokens = IndexedTokens::Open(folder / "c");
  EXPECT_EQ(tokens->index().sequences(), 3);
  EXPECT_EQ(tokens->index().documents(), 2);
  EXPECT_THAT(tokens->index().DocumentStarts(0, 6), ElementsAre(0, 4));
}

TEST(IndexedTokens, TheWriterRefusesTokensThatDoNotFit) {
  const ScratchFolder folder;
  auto writer = *IndexedTokenWriter::Create(folder / "c", TokenType::kUint16);
  const std::vector<int32_t> large = {65536};
  EXPECT_EQ(writer->Append(large).code(), absl::StatusCode::kInvalidArgument);
  const std::vector<int32_t> negative = {-1};
  EXPECT_EQ(writer->Append(negative).code(), absl::StatusCode::kInvalidArgument);
}

TEST(IndexedTokens, AnUnfinishedWriterLeavesNothing) {
  const ScratchFolder folder;
  WriteCorpus(folder / "c", TokenType::kUint16, {{7}});
  {
    auto writer = *IndexedTokenWriter::Create(folder / "c", TokenType::kUint16);
    const std::vector<int32_t> tokens = {1, 2, 3};
    ASSERT_TRUE(writer->Append(tokens).ok());
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "c.bin.tmp"));
  EXPECT_THAT(ReadAll(*IndexedTokens::Open(folder / "c")), ElementsAre(7));  // the old one stands
}

TEST(IndexedTokens, MissingFilesAreNotFound) {
  const ScratchFolder folder;
  EXPECT_EQ(IndexedTokens::Open(folder / "none").status().code(), absl::StatusCode::kNotFound);
  WriteCorpus(folder / "c", TokenType::kUint16, {{7}});
  std::filesystem::remove(folder / "c.bin");
  const auto status = IndexedTokens::Open(folder / "c").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("c.bin"));
}

TEST(IndexedTokens, EveryTruncationOfEitherFileIsDataLoss) {
  const ScratchFolder folder;
  const std::string prefix = folder / "c";
  WriteCorpus(prefix, TokenType::kUint16, {{1, 2, 3}, {4}, {5, 6}});
  for (const char* suffix : {".idx", ".bin"}) {
    const std::string whole = FileBytes(prefix + suffix);
    for (size_t size = 0; size <= whole.size() + 1; ++size) {
      if (size == whole.size()) continue;
      std::string bytes = whole;
      bytes.resize(size);
      WriteBytes(prefix + suffix, bytes);
      const auto status = IndexedTokens::Open(prefix).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << suffix << " of " << size << " bytes";
      EXPECT_THAT(std::string(status.message()), HasSubstr(prefix + suffix));
    }
    WriteBytes(prefix + suffix, whole);
  }
  EXPECT_TRUE(IndexedTokens::Open(prefix).ok());
}

TEST(IndexedTokens, TheMessageOfATruncationNamesBothSizes) {
  const ScratchFolder folder;
  WriteCorpus(folder / "c", TokenType::kUint16, {{1, 2, 3}, {4}, {5, 6}});
  WriteBytes(folder / "c.bin", "12345");
  EXPECT_THAT(std::string(IndexedTokens::Open(folder / "c").status().message()),
              HasSubstr("needs 12 bytes, the file has 5"));
}

// Sets one field of the index and expects `code`.
void ExpectDamage(size_t offset, int64_t value, size_t bytes, absl::StatusCode code) {
  const ScratchFolder folder;
  WriteCorpus(folder / "c", TokenType::kUint16, {{1, 2, 3}, {4}, {5, 6}});
  std::string idx = FileBytes(folder / "c.idx");
  std::memcpy(idx.data() + offset, &value, bytes);
  WriteBytes(folder / "c.idx", idx);
  EXPECT_EQ(IndexedTokens::Open(folder / "c").status().code(), code)
      << "byte " << offset << " set to " << value;
}

TEST(IndexedTokens, RefusesAnIndexThatContradictsItself) {
  constexpr auto kLoss = absl::StatusCode::kDataLoss;
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr size_t kSizes = 34, kOffsets = kSizes + 3 * 4, kDocuments = kOffsets + 3 * 8;
  ExpectDamage(0, 'X', 1, kLoss);             // magic
  ExpectDamage(9, 2, 8, kInvalid);            // version
  ExpectDamage(17, 6, 1, kInvalid);           // float64
  ExpectDamage(18, -1, 8, kLoss);             // sequences
  ExpectDamage(26, -1, 8, kLoss);             // documents
  ExpectDamage(kSizes, -3, 4, kLoss);         // a negative size
  ExpectDamage(kSizes, 4, 4, kLoss);          // a size against its pointer
  ExpectDamage(kOffsets + 8, 8, 8, kLoss);    // a pointer against the sizes
  ExpectDamage(kDocuments, 1, 8, kLoss);      // the first document
  ExpectDamage(kDocuments + 8, 9, 8, kLoss);  // beyond the sequences
  ExpectDamage(kDocuments + 8, -1, 8, kLoss);
  ExpectDamage(kDocuments + 24, 2, 8, kLoss);  // the last entry
}

TEST(IndexedTokens, TakesMegatronsElementTypeForAVocabulary) {
  EXPECT_EQ(TokenTypeForVocabulary(65499), TokenType::kUint16);
  EXPECT_EQ(TokenTypeForVocabulary(65500), TokenType::kInt32);
}

}  // namespace
}  // namespace moesaic
