#include "trainer/data/document_reader.h"

#include <fmt/format.h>

#include <cerrno>
#include <filesystem>
#include <string_view>
#include <utility>

namespace moesaic {
namespace {

constexpr size_t kReadBytes = size_t{1} << 20;

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

// Where to cut `text`, which is longer than `limit`: at most `limit`, more than 0.
size_t CutPoint(std::string_view text, size_t limit) {
  const size_t newline = text.substr(0, limit).rfind('\n');
  if (newline != std::string_view::npos) return newline + 1;
  for (size_t at = limit; at > 0; --at) {
    if (text[at] == ' ' && text[at - 1] != ' ') return at;
  }
  size_t at = limit;
  while (at > limit - 4 && IsContinuation(text[at])) --at;
  return IsContinuation(text[at]) ? limit : at;
}

}  // namespace

absl::StatusOr<int64_t> TotalBytes(const std::vector<std::string>& paths) {
  int64_t bytes = 0;
  for (const std::string& path : paths) {
    std::error_code error;
    const auto size = std::filesystem::file_size(path, error);
    if (error) {
      return absl::ErrnoToStatus(error.value(), fmt::format("[data] {}", path));
    }
    bytes += static_cast<int64_t>(size);
  }
  return bytes;
}

absl::StatusOr<DocumentSeparator> DocumentSeparator::Parse(absl::string_view spelling) {
  if (spelling == "line") return DocumentSeparator{"\n", false};
  if (spelling == "blank-line") return DocumentSeparator{"\n\n", true};
  if (spelling == "file") return DocumentSeparator{"", false};
  DocumentSeparator separator{"", false};
  for (size_t i = 0; i < spelling.size(); ++i) {
    if (spelling[i] != '\\') {
      separator.text += spelling[i];
      continue;
    }
    const char code = ++i < spelling.size() ? spelling[i] : '\0';
    switch (code) {
      case 'n':
        separator.text += '\n';
        break;
      case 'r':
        separator.text += '\r';
        break;
      case 't':
        separator.text += '\t';
        break;
      case '\\':
        separator.text += '\\';
        break;
      default:
        return absl::InvalidArgumentError(
            fmt::format("[data] document separator \"{}\": escapes are \\n, \\r, \\t and \\\\",
                        std::string(spelling)));
    }
  }
  if (separator.text.empty()) {
    return absl::InvalidArgumentError(
        "[data] the document separator is empty; say line, blank-line, file or a text");
  }
  return separator;
}

absl::StatusOr<DocumentReader> DocumentReader::Open(const std::string& path,
                                                    DocumentSeparator separator,
                                                    int64_t piece_bytes) {
  std::unique_ptr<std::FILE, CloseFile> file(std::fopen(path.c_str(), "rbe"));
  if (file == nullptr) {
    return absl::ErrnoToStatus(errno, fmt::format("[data] {}: cannot open", path));
  }
  return DocumentReader(path, std::move(separator), static_cast<size_t>(piece_bytes),
                        std::move(file));
}

absl::Status DocumentReader::Fill(size_t bytes) {
  while (!ended_ && buffer_.size() - at_ < bytes) {
    buffer_.erase(0, std::exchange(at_, 0));
    const size_t held = buffer_.size();
    buffer_.resize(held + kReadBytes);
    const size_t got = std::fread(buffer_.data() + held, 1, kReadBytes, file_.get());
    buffer_.resize(held + got);
    if (got == kReadBytes) continue;
    if (std::ferror(file_.get()) != 0) {
      return absl::ErrnoToStatus(errno, fmt::format("[data] {}: cannot read", path_));
    }
    ended_ = true;
  }
  return absl::OkStatus();
}

std::string DocumentReader::Take(size_t text, size_t separator) {
  std::string taken = buffer_.substr(at_, text);
  at_ += text + separator;
  bytes_done_ += static_cast<int64_t>(text + separator);
  return taken;
}

absl::StatusOr<bool> DocumentReader::Next(TextPiece* piece) {
  const size_t window = piece_bytes_ + separator_.text.size() + 1;
  while (true) {
    if (auto status = Fill(window); !status.ok()) return status;
    const std::string_view rest = std::string_view(buffer_).substr(at_, window);
    if (rest.empty()) return false;
    if (separator_.swallow_newlines && !in_document_ && rest[0] == '\n') {
      Take(1, 0);
      continue;
    }
    const size_t found =
        separator_.text.empty() ? std::string_view::npos : rest.find(separator_.text);
    const bool started = in_document_;
    if (found != std::string_view::npos && found <= piece_bytes_) {
      piece->text = Take(found, separator_.text.size());
      in_document_ = false;
    } else if (rest.size() <= piece_bytes_) {  // the end of the file
      const size_t last =
          separator_.swallow_newlines ? rest.find_last_not_of('\n') + 1 : rest.size();
      piece->text = Take(last, rest.size() - last);
    } else {
      piece->text = Take(CutPoint(rest, piece_bytes_), 0);
      in_document_ = true;
    }
    piece->starts_document = !started;
    if (!piece->text.empty()) return true;
  }
}

}  // namespace moesaic
