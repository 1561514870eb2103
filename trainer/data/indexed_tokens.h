// Indexed token files: Megatron's "indexed dataset", so that corpora prepared for it are read as
// they are, and the other way round. A corpus is a pair of files, named by their common prefix:
//
//   PREFIX.bin   the tokens of all sequences, one after another, little endian
//   PREFIX.idx   char[9]  "MMIDIDX\0\0"
//                u64      version, 1
//                u8       element type: TokenType
//                u64      S, sequences
//                u64      D, entries of the document index (documents + 1)
//                i32[S]   tokens of each sequence
//                i64[S]   byte offset of each sequence in PREFIX.bin
//                i64[D]   the sequence that each document starts with; the last entry is S
//
// Training reads the tokens as one stream; sequences only say where documents start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "trainer/data/mapped_file.h"

namespace moesaic {

// Element types, by their code in the file.
enum class TokenType : uint8_t {
  kUint8 = 1,
  kInt8 = 2,
  kInt16 = 3,
  kInt32 = 4,
  kInt64 = 5,
  kUint16 = 8,
};

// Bytes of an element.
int64_t TokenBytes(TokenType type);

// The type Megatron takes for a vocabulary: uint16 below 65500, else int32.
TokenType TokenTypeForVocabulary(int64_t vocabulary);

// The content of a .idx file, checked as a whole. A view: the bytes must outlive it. Immutable, so
// thread-safe.
class TokenIndex {
 public:
  // `bin_bytes` is the size of the .bin file; `prefix` names the corpus in errors. Reads all of the
  // index once. DataLoss when either file is truncated or they contradict themselves or each other;
  // InvalidArgument for a version or an element type that is not read here.
  static absl::StatusOr<TokenIndex> Parse(std::span<const std::byte> idx, int64_t bin_bytes,
                                          absl::string_view prefix);

  TokenType type() const { return type_; }
  int64_t sequences() const { return sequences_; }
  int64_t documents() const { return documents_; }
  int64_t tokens() const { return tokens_; }

  // The token (in the stream) that document d starts at, 0 <= d <= documents(); for d =
  // documents(), tokens(). Empty documents start where the next one does. O(1).
  int64_t DocumentStart(int64_t d) const;

  // The tokens in [begin, begin + count) that start a document, ascending, each once.
  // O(log documents + result).
  std::vector<int64_t> DocumentStarts(int64_t begin, int64_t count) const;

 private:
  absl::Status CheckSequences(int64_t bin_bytes, absl::string_view prefix) const;
  absl::Status CheckDocuments(absl::string_view prefix) const;

  TokenType type_ = TokenType::kUint16;
  int64_t sequences_ = 0;
  int64_t documents_ = 0;
  int64_t tokens_ = 0;
  // Not aligned in the file: read through memcpy.
  const std::byte* sizes_ = nullptr;
  const std::byte* offsets_ = nullptr;
  const std::byte* document_index_ = nullptr;
};

// Reads a corpus, through memory maps. Immutable, so thread-safe.
class IndexedTokens {
 public:
  // Errors of MappedFile::Open and TokenIndex::Parse.
  static absl::StatusOr<IndexedTokens> Open(absl::string_view prefix);

  const std::string& prefix() const { return prefix_; }
  const TokenIndex& index() const { return index_; }
  int64_t tokens() const { return index_.tokens(); }

  // Copies tokens [begin, begin + out.size()) of the stream, widened. The range must lie within
  // tokens(); a corrupt corpus may hold any value of its element type.
  void Read(int64_t begin, std::span<int64_t> out) const;

 private:
  IndexedTokens(std::string prefix, MappedFile idx, MappedFile bin, TokenIndex index)
      : prefix_(std::move(prefix)), idx_(std::move(idx)), bin_(std::move(bin)), index_(index) {}

  std::string prefix_;
  MappedFile idx_;
  MappedFile bin_;
  TokenIndex index_;
};

// Writes a corpus. Tokens go to disk as they come; 8 bytes a document stay in memory. The final
// names appear only in Finish (from PREFIX.bin.tmp and PREFIX.idx.tmp; the .idx last, so it stands
// for both); without it the destructor removes the temporary files. What the disk refuses is
// returned as absl::ErrnoToStatus maps it. Thread-compatible.
class IndexedTokenWriter {
 public:
  // Creates the parent folder when there is none.
  static absl::StatusOr<std::unique_ptr<IndexedTokenWriter>> Create(absl::string_view prefix,
                                                                    TokenType type);
  IndexedTokenWriter(const IndexedTokenWriter&) = delete;
  IndexedTokenWriter& operator=(const IndexedTokenWriter&) = delete;
  ~IndexedTokenWriter();

  // Adds tokens to the sequence that is open. InvalidArgument when one does not fit the element
  // type.
  absl::Status Append(std::span<const int32_t> tokens);
  // Ends the sequence, which may be empty.
  void EndSequence();
  // Ends the document with its last sequence; a sequence with tokens must have been ended, or is
  // ended here.
  void EndDocument();
  // Ends an open document, makes both files durable and gives them their names. Call once, last.
  absl::Status Finish();

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(document_index_.size()) - 1; }

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  using File = std::unique_ptr<std::FILE, CloseFile>;

  IndexedTokenWriter(std::string prefix, TokenType type, File bin)
      : prefix_(std::move(prefix)), type_(type), bin_(std::move(bin)) {}

  absl::Status WriteIndex() const;

  std::string prefix_;
  TokenType type_;
  File bin_;
  std::vector<int32_t> sizes_;
  std::vector<int64_t> document_index_ = {0};
  std::vector<std::byte> buffer_;
  int64_t tokens_ = 0;
  int64_t open_tokens_ = 0;  // of the open sequence
  bool finished_ = false;
};

}  // namespace moesaic
