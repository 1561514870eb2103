#include "trainer/data/indexed_tokens.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <utility>

namespace moesaic {
namespace {

static_assert(std::endian::native == std::endian::little, "the files are little endian");

constexpr char kMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0};
constexpr uint64_t kVersion = 1;
constexpr int64_t kHeaderBytes = sizeof(kMagic) + 8 + 1 + 8 + 8;
constexpr int64_t kMaxSequence = std::numeric_limits<int32_t>::max();

template <typename T>
T Load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <typename T>
T LoadAt(const std::byte* array, int64_t i) {
  return Load<T>(array + i * static_cast<int64_t>(sizeof(T)));
}

std::optional<TokenType> TypeOfCode(uint8_t code) {
  if ((code >= 1 && code <= 5) || code == 8) return static_cast<TokenType>(code);
  return std::nullopt;
}

// Calls f with a value of the element type.
template <typename F>
void WithElement(TokenType type, F f) {
  switch (type) {
    case TokenType::kUint8:
      return f(uint8_t{});
    case TokenType::kInt8:
      return f(int8_t{});
    case TokenType::kInt16:
      return f(int16_t{});
    case TokenType::kInt32:
      return f(int32_t{});
    case TokenType::kInt64:
      return f(int64_t{});
    case TokenType::kUint16:
      return f(uint16_t{});
  }
}

// As a double, because damaged counts may be anything.
double IndexBytes(uint64_t sequences, uint64_t entries) {
  return static_cast<double>(kHeaderBytes) + 12.0 * static_cast<double>(sequences) +
         8.0 * static_cast<double>(entries);
}

absl::Status Damaged(absl::string_view prefix, const std::string& what) {
  return absl::DataLossError(fmt::format(
      "[data] {}{}; prepare the corpus again or restore its files", std::string(prefix), what));
}

absl::Status WriteError(const std::string& path) {
  return absl::ErrnoToStatus(errno, fmt::format("[data] cannot write {}", path));
}

}  // namespace

int64_t TokenBytes(TokenType type) {
  int64_t bytes = 0;
  WithElement(type, [&](auto element) { bytes = sizeof(element); });
  return bytes;
}

TokenType TokenTypeForVocabulary(int64_t vocabulary) {
  return vocabulary < 65500 ? TokenType::kUint16 : TokenType::kInt32;
}

absl::StatusOr<TokenIndex> TokenIndex::Parse(std::span<const std::byte> idx, int64_t bin_bytes,
                                             absl::string_view prefix) {
  const auto size = static_cast<int64_t>(idx.size());
  if (size < kHeaderBytes) {
    return Damaged(prefix,
                   fmt::format(".idx is truncated: its header has {} bytes, the file has {}",
                               kHeaderBytes, size));
  }
  const std::byte* at = idx.data();
  if (std::memcmp(at, kMagic, sizeof(kMagic)) != 0) {
    return Damaged(prefix, ".idx is not the index of a token file: its first 9 bytes are wrong");
  }
  const auto version = Load<uint64_t>(at + 9);
  const auto code = Load<uint8_t>(at + 17);
  const auto sequences = Load<uint64_t>(at + 18);
  const auto entries = Load<uint64_t>(at + 26);
  const std::optional<TokenType> type = TypeOfCode(code);
  if (version != kVersion || !type.has_value()) {
    return absl::InvalidArgumentError(
        fmt::format("[data] {}.idx has version {} and element type {}; read are version 1 and the "
                    "integer types "
                    "1-5 and 8",
                    std::string(prefix), version, code));
  }
  const auto body = static_cast<uint64_t>(size - kHeaderBytes);
  // Compared without a product that could overflow.
  if (sequences > body / 12 || entries > (body - sequences * 12) / 8 ||
      sequences * 12 + entries * 8 != body) {
    return Damaged(prefix,
                   fmt::format(".idx has the wrong size: {} sequences and {} document entries need "
                               "{:.0f} bytes, the file has {}",
                               sequences, entries, IndexBytes(sequences, entries), size));
  }
  if (entries == 0) return Damaged(prefix, ".idx has no document index");

  TokenIndex index;
  index.type_ = *type;
  index.sequences_ = static_cast<int64_t>(sequences);
  index.documents_ = static_cast<int64_t>(entries) - 1;
  index.tokens_ = bin_bytes / TokenBytes(*type);
  index.sizes_ = at + kHeaderBytes;
  index.offsets_ = index.sizes_ + sequences * 4;
  index.document_index_ = index.offsets_ + sequences * 8;
  if (auto status = index.CheckSequences(bin_bytes, prefix); !status.ok()) return status;
  if (auto status = index.CheckDocuments(prefix); !status.ok()) return status;
  return index;
}

absl::Status TokenIndex::CheckSequences(int64_t bin_bytes, absl::string_view prefix) const {
  const int64_t element = TokenBytes(type_);
  int64_t end = 0;
  for (int64_t i = 0; i < sequences_; ++i) {
    const auto size = LoadAt<int32_t>(sizes_, i);
    const auto offset = LoadAt<int64_t>(offsets_, i);
    if (size < 0 || offset != end) {
      return Damaged(prefix, fmt::format(".idx: sequence {} has {} tokens at byte {}, expected at "
                                         "byte {}",
                                         i, size, offset, end));
    }
    end += size * element;
  }
  if (end == bin_bytes) return absl::OkStatus();
  return Damaged(prefix, fmt::format(".bin has the wrong size: the index needs {} bytes, the file "
                                     "has {}",
                                     end, bin_bytes));
}

absl::Status TokenIndex::CheckDocuments(absl::string_view prefix) const {
  int64_t before = 0;
  for (int64_t d = 0; d <= documents_; ++d) {
    const auto sequence = LoadAt<int64_t>(document_index_, d);
    const bool in_order = d == 0 ? sequence == 0 : sequence >= before;
    if (!in_order || sequence > sequences_ || (d == documents_ && sequence != sequences_)) {
      return Damaged(prefix, fmt::format(".idx: document entry {} of {} names sequence {} of {}", d,
                                         documents_ + 1, sequence, sequences_));
    }
    before = sequence;
  }
  return absl::OkStatus();
}

int64_t TokenIndex::DocumentStart(int64_t d) const {
  const auto sequence = LoadAt<int64_t>(document_index_, d);
  if (sequence == sequences_) return tokens_;
  return LoadAt<int64_t>(offsets_, sequence) / TokenBytes(type_);
}

std::vector<int64_t> TokenIndex::DocumentStarts(int64_t begin, int64_t count) const {
  int64_t first = 0;  // the first document that starts at `begin` or later
  for (int64_t end = documents_; first < end;) {
    const int64_t middle = first + (end - first) / 2;
    if (DocumentStart(middle) < begin) {
      first = middle + 1;
    } else {
      end = middle;
    }
  }
  const int64_t end = std::min(begin + count, tokens_);
  std::vector<int64_t> starts;
  for (int64_t d = first; d < documents_; ++d) {
    const int64_t start = DocumentStart(d);
    if (start >= end) break;
    if (starts.empty() || starts.back() != start) starts.push_back(start);
  }
  return starts;
}

absl::StatusOr<IndexedTokens> IndexedTokens::Open(absl::string_view prefix) {
  const std::string stem(prefix);
  auto idx = MappedFile::Open(stem + ".idx");
  if (!idx.ok()) return idx.status();
  auto bin = MappedFile::Open(stem + ".bin");
  if (!bin.ok()) return bin.status();
  auto index = TokenIndex::Parse(idx->bytes(), static_cast<int64_t>(bin->bytes().size()), prefix);
  if (!index.ok()) return index.status();
  return IndexedTokens(stem, *std::move(idx), *std::move(bin), *index);
}

void IndexedTokens::Read(int64_t begin, std::span<int64_t> out) const {
  WithElement(index_.type(), [&]<typename T>(T) {
    const std::byte* from = bin_.bytes().data() + begin * static_cast<int64_t>(sizeof(T));
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = static_cast<int64_t>(LoadAt<T>(from, static_cast<int64_t>(i)));
    }
  });
}

absl::StatusOr<std::unique_ptr<IndexedTokenWriter>> IndexedTokenWriter::Create(
    absl::string_view prefix, TokenType type) {
  const std::string stem(prefix);
  std::error_code ignored;  // a folder that cannot be made shows when the file is opened
  const auto parent = std::filesystem::path(stem).parent_path();
  if (!parent.empty()) std::filesystem::create_directories(parent, ignored);
  const std::string path = stem + ".bin.tmp";
  File bin(std::fopen(path.c_str(), "wbe"));
  if (bin == nullptr) return WriteError(path);
  return std::unique_ptr<IndexedTokenWriter>(new IndexedTokenWriter(stem, type, std::move(bin)));
}

IndexedTokenWriter::~IndexedTokenWriter() {
  if (finished_) return;
  bin_.reset();
  ::unlink((prefix_ + ".bin.tmp").c_str());
  ::unlink((prefix_ + ".idx.tmp").c_str());
}

absl::Status IndexedTokenWriter::Append(std::span<const int32_t> tokens) {
  if (tokens.empty()) return absl::OkStatus();
  while (static_cast<int64_t>(tokens.size()) > kMaxSequence - open_tokens_) {
    const auto part = static_cast<size_t>(kMaxSequence - open_tokens_);
    if (auto status = Append(tokens.first(part)); !status.ok()) return status;
    EndSequence();
    tokens = tokens.subspan(part);
  }
  std::optional<int32_t> misfit;
  WithElement(type_, [&]<typename T>(T) {
    buffer_.resize(tokens.size() * sizeof(T));
    std::byte* to = buffer_.data();
    for (const int32_t token : tokens) {
      const auto element = static_cast<T>(token);
      if (!std::in_range<T>(token)) misfit = token;
      std::memcpy(to, &element, sizeof(T));
      to += sizeof(T);
    }
  });
  if (misfit.has_value()) {
    return absl::InvalidArgumentError(
        fmt::format("[data] token {} does not fit the element type of {}.bin", *misfit, prefix_));
  }
  if (std::fwrite(buffer_.data(), 1, buffer_.size(), bin_.get()) != buffer_.size()) {
    return WriteError(prefix_ + ".bin.tmp");
  }
  open_tokens_ += static_cast<int64_t>(tokens.size());
  tokens_ += static_cast<int64_t>(tokens.size());
  return absl::OkStatus();
}

void IndexedTokenWriter::EndSequence() {
  sizes_.push_back(static_cast<int32_t>(open_tokens_));
  open_tokens_ = 0;
}

void IndexedTokenWriter::EndDocument() {
  if (open_tokens_ > 0) EndSequence();
  document_index_.push_back(static_cast<int64_t>(sizes_.size()));
}

absl::Status IndexedTokenWriter::Finish() {
  if (open_tokens_ > 0 || document_index_.back() != static_cast<int64_t>(sizes_.size())) {
    EndDocument();
  }
  if (std::fflush(bin_.get()) != 0 || ::fsync(::fileno(bin_.get())) != 0) {
    return WriteError(prefix_ + ".bin.tmp");
  }
  if (auto status = WriteIndex(); !status.ok()) return status;
  // An index that stands always belongs to the .bin beside it.
  const std::string bin = prefix_ + ".bin";
  const std::string idx = prefix_ + ".idx";
  if (::unlink(idx.c_str()) != 0 && errno != ENOENT) return WriteError(idx);
  if (std::rename((bin + ".tmp").c_str(), bin.c_str()) != 0) return WriteError(bin);
  if (std::rename((idx + ".tmp").c_str(), idx.c_str()) != 0) return WriteError(idx);
  finished_ = true;
  return absl::OkStatus();
}

absl::Status IndexedTokenWriter::WriteIndex() const {
  const std::string path = prefix_ + ".idx.tmp";
  File file(std::fopen(path.c_str(), "wbe"));
  if (file == nullptr) return WriteError(path);
  bool written = true;
  const auto put = [&](const void* data, size_t bytes) {
    if (bytes == 0) return;
    written = written && std::fwrite(data, 1, bytes, file.get()) == bytes;
  };
  const auto code = static_cast<uint8_t>(type_);
  const uint64_t sequences = sizes_.size();
  const uint64_t entries = document_index_.size();
  put(kMagic, sizeof(kMagic));
  put(&kVersion, sizeof(kVersion));
  put(&code, sizeof(code));
  put(&sequences, sizeof(sequences));
  put(&entries, sizeof(entries));
  put(sizes_.data(), sizes_.size() * sizeof(int32_t));
  int64_t offset = 0;
  for (const int32_t size : sizes_) {
    put(&offset, sizeof(offset));
    offset += size * TokenBytes(type_);
  }
  put(document_index_.data(), document_index_.size() * sizeof(int64_t));
  if (!written || std::fflush(file.get()) != 0 || ::fsync(::fileno(file.get())) != 0) {
    return WriteError(path);
  }
  return absl::OkStatus();
}

}  // namespace moesaic
