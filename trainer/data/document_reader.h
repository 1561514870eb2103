// DocumentReader: the documents of a text file, in bounded pieces, so that neither a large file nor
// a large document is ever in memory as a whole.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace moesaic {

// What stands between two documents of a file. Documents without any text are passed over.
struct DocumentSeparator {
  std::string text = "\n";        // empty: the file is one document
  bool swallow_newlines = false;  // newlines at either end of a document belong to the separator

  // "line", "blank-line", "file", or else the separator itself, in which \n, \r, \t and \\ are
  // escapes. InvalidArgument when it is empty or has another escape.
  static absl::StatusOr<DocumentSeparator> Parse(absl::string_view spelling);
};

struct TextPiece {
  std::string text;  // not empty
  bool starts_document = false;
};

// The size of all files together. NotFound when one is missing, else the system's error.
absl::StatusOr<int64_t> TotalBytes(const std::vector<std::string>& paths);

// Thread-compatible.
class DocumentReader {
 public:
  // Pieces have `piece_bytes` at most (> 4). NotFound when there is no such file, else the
  // system's error.
  static absl::StatusOr<DocumentReader> Open(const std::string& path, DocumentSeparator separator,
                                             int64_t piece_bytes);

  // The next piece; false at the end. A document that is longer than a piece is cut after a newline
  // or else before a space, where tokens of the models trained here do not cross, or else between
  // characters.
  absl::StatusOr<bool> Next(TextPiece* piece);

  // Bytes of the file whose pieces have been returned.
  int64_t bytes_done() const { return bytes_done_; }

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  DocumentReader(std::string path, DocumentSeparator separator, size_t piece_bytes,
                 std::unique_ptr<std::FILE, CloseFile> file)
      : path_(std::move(path)),
        separator_(std::move(separator)),
        piece_bytes_(piece_bytes),
        file_(std::move(file)) {}

  // Makes `rest_` hold `bytes` unread bytes, or all there are.
  absl::Status Fill(size_t bytes);
  std::string Take(size_t text, size_t separator);

  std::string path_;
  DocumentSeparator separator_;
  size_t piece_bytes_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::string buffer_;
  size_t at_ = 0;  // of the first unread byte in buffer_
  bool ended_ = false;
  bool in_document_ = false;
  int64_t bytes_done_ = 0;
};

}  // namespace moesaic
