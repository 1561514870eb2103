#include "trainer/data/document_reader.h"

#include <gmock/gmock.h>

#include "tests/trainer/data/corpus_files.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;

// The documents of `text`, the pieces of each joined by '|'.
std::vector<std::string> Documents(const std::string& text, const std::string& separator,
                                   int64_t piece_bytes = 1000) {
  const ScratchFolder folder;
  WriteBytes(folder / "t", text);
  auto reader =
      DocumentReader::Open(folder / "t", *DocumentSeparator::Parse(separator), piece_bytes);
  EXPECT_TRUE(reader.ok()) << reader.status();
  std::vector<std::string> documents;
  TextPiece piece;
  while (*reader->Next(&piece)) {
    EXPECT_LE(static_cast<int64_t>(piece.text.size()), piece_bytes);
    if (piece.starts_document) {
      documents.push_back(piece.text);
    } else {
      documents.back() += "|" + piece.text;
    }
  }
  EXPECT_EQ(reader->bytes_done(), static_cast<int64_t>(text.size()));
  return documents;
}

TEST(DocumentReader, SplitsAtLines) {
  EXPECT_THAT(Documents("a b\n\nc\nd", "line"), ElementsAre("a b", "c", "d"));
}

TEST(DocumentReader, SplitsAtBlankLines) {
  EXPECT_THAT(Documents("\na\nb\n\nc\n\n\n\nd\n", "blank-line"), ElementsAre("a\nb", "c", "d"));
}

TEST(DocumentReader, AFileMayBeOneDocument) {
  EXPECT_THAT(Documents("\na\n\nb\n", "file"), ElementsAre("\na\n\nb\n"));
  EXPECT_THAT(Documents("", "file"), ElementsAre());
}

TEST(DocumentReader, SplitsAtAText) {
  EXPECT_THAT(Documents("a<|end|>\nb<|end|>", "<|end|>"), ElementsAre("a", "\nb"));
  EXPECT_THAT(Documents("a\r\n\r\nb", "\\r\\n\\r\\n"), ElementsAre("a", "b"));
}

TEST(DocumentReader, CutsLongDocumentsAfterNewlinesOrBeforeSpaces) {
  EXPECT_THAT(Documents("one\ntwo three", "file", 8), ElementsAre("one\n|two| three"));
  EXPECT_THAT(Documents("aaaa   bbbb", "file", 6), ElementsAre("aaaa|   bbb|b"));
  EXPECT_THAT(Documents("one two three\nfour", "line", 8), ElementsAre("one two| three", "four"));
}

TEST(DocumentReader, CutsBetweenCharacters) {
  EXPECT_THAT(Documents("aäöüä", "file", 5), ElementsAre("aäö|üä"));
  EXPECT_THAT(Documents("aäöüä", "file", 6), ElementsAre("aäö|üä"));
}

TEST(DocumentReader, FindsASeparatorAtTheEdgeOfAPiece) {
  for (int64_t piece_bytes = 5; piece_bytes < 16; ++piece_bytes) {
    const auto documents = Documents("abcdefgh<|>ijk<|>lmnop", "<|>", piece_bytes);
    ASSERT_EQ(documents.size(), 3u) << piece_bytes;
    EXPECT_EQ(documents[1], "ijk");
  }
}

TEST(DocumentReader, ReadsFilesLargerThanItsBuffer) {
  std::string text;
  for (int i = 0; i < 400000; ++i) text += std::to_string(i) + "\n";
  const auto documents = Documents(text, "line");
  ASSERT_EQ(documents.size(), 400000u);
  EXPECT_EQ(documents[399999], "399999");
  auto whole = Documents(text, "file", 65536);
  ASSERT_EQ(whole.size(), 1u);
  EXPECT_GT(std::erase(whole[0], '|'), 40u);
  EXPECT_EQ(whole[0], text);
}

TEST(DocumentReader, RefusesSeparatorsItCannotRead) {
  EXPECT_FALSE(DocumentSeparator::Parse("").ok());
  EXPECT_FALSE(DocumentSeparator::Parse("a\\q").ok());
  EXPECT_FALSE(DocumentSeparator::Parse("\\").ok());
  EXPECT_EQ(DocumentReader::Open("/nowhere/t", {}, 100).status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace moesaic
