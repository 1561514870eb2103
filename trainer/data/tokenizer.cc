#include "trainer/data/tokenizer.h"

#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "trainer/data/document_reader.h"
#include "trainer/data/sentencepiece_model.h"

namespace moesaic {
namespace {

// SentencePiece writes a space as this character, so text that has it goes by bytes.
constexpr std::string_view kSpaceMark = "\xe2\x96\x81";
constexpr int64_t kLineBytes = 4096;
constexpr size_t kCachedWordBytes = 64;
constexpr size_t kCachedWords = size_t{1} << 18;

// The bytes of the UTF-8 character that `text` starts with; 0 when they are not one.
size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const bool overlong = (lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xf0 && byte(1) < 0x90);
  const bool surrogate = lead == 0xed && byte(1) > 0x9f;
  const bool beyond = lead == 0xf4 && byte(1) > 0x8f;
  return overlong || surrogate || beyond ? 0 : length;
}

// The bytes at the start of `text` that the model encodes without loss.
size_t PlainBytes(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = CharacterBytes(text.substr(at));
    if (length == 0 || text.substr(at, length) == kSpaceMark) break;
    at += length;
  }
  return at;
}

// The lines that training reads, of all files.
class SampledLines {
 public:
  // Takes about `share` of the lines, chosen by their hash.
  SampledLines(const std::vector<std::string>& paths, double share)
      : paths_(paths), share_(share) {}

  // Null at the end, or when `status` is no longer OK.
  const std::string* Next() {
    while (status_.ok() && (reader_.has_value() || file_ < paths_.size())) {
      if (!reader_.has_value()) {
        Open();
      } else if (const auto more = reader_->Next(&piece_); !more.ok()) {
        status_ = more.status();
      } else if (!*more) {
        reader_.reset();
      } else if (Chosen()) {
        bytes_ += static_cast<int64_t>(piece_.text.size());
        return &piece_.text;
      }
    }
    return nullptr;
  }

  const absl::Status& status() const { return status_; }
  int64_t bytes() const { return bytes_; }

 private:
  void Open() {
    auto reader = DocumentReader::Open(paths_[file_++], DocumentSeparator{}, kLineBytes);
    status_ = reader.status();
    if (reader.ok()) reader_ = *std::move(reader);
  }

  bool Chosen() const {
    if (share_ >= 1) return true;
    const uint64_t hash = XXH3_64bits(piece_.text.data(), piece_.text.size());
    return static_cast<double>(hash) < share_ * 0x1p64;
  }

  const std::vector<std::string>& paths_;
  double share_;
  size_t file_ = 0;  // the next to open
  std::optional<DocumentReader> reader_;
  TextPiece piece_;
  absl::Status status_;
  int64_t bytes_ = 0;
};

std::string WithSpaces(std::string piece) {
  for (size_t at = 0; (at = piece.find(kSpaceMark, at)) != std::string::npos; ++at) {
    piece.replace(at, kSpaceMark.size(), " ");
  }
  return piece;
}

// The bytes of the word that `text` starts with: up to the next space, or with the next line end.
size_t WordBytes(std::string_view text) {
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '\n') return at + 1;
    if (at > 0 && text[at] == ' ') return at;
  }
  return text.size();
}

absl::Status WriteFile(const std::string& path, const std::string& bytes) {
  std::error_code ignored;  // a folder that cannot be made shows when the file is opened
  const auto parent = std::filesystem::path(path).parent_path();
  if (!parent.empty()) std::filesystem::create_directories(parent, ignored);
  const std::string temporary = path + ".tmp";
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (file.fail() || std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary.c_str());
    return absl::ErrnoToStatus(error, fmt::format("[data] cannot write {}", path));
  }
  return absl::OkStatus();
}

std::unordered_map<std::string, std::string> TrainerFlags(int64_t vocabulary) {
  return {{"model_type", "bpe"},
          {"vocab_size", std::to_string(vocabulary)},
          {"normalization_rule_name", "identity"},
          {"byte_fallback", "true"},
          {"add_dummy_prefix", "false"},
          {"remove_extra_whitespaces", "false"},
          {"character_coverage", "0.9995"},
          {"max_sentence_length", std::to_string(kLineBytes)},
          {"num_threads", "1"},
          {"minloglevel", "2"}};
}

}  // namespace

absl::StatusOr<TokenizerSummary> TrainTokenizer(const TokenizerTraining& training) {
  const auto total = TotalBytes(training.inputs);
  if (!total.ok()) return total.status();
  if (*total == 0) return absl::InvalidArgumentError("[data] the input has no text");
  const double share = static_cast<double>(training.sample_bytes) / static_cast<double>(*total);
  SampledLines lines(training.inputs, share);
  std::string model;
  const std::string problem =
      TrainSentencePiece({TrainerFlags(training.vocabulary), [&] { return lines.Next(); }}, &model);
  if (!lines.status().ok()) return lines.status();
  if (!problem.empty()) {
    // What follows the library's own place in its source; it names flags that are not ours.
    const size_t place = problem.rfind("] ");
    const std::string reason = place == std::string::npos ? problem : problem.substr(place + 2);
    return absl::InvalidArgumentError(fmt::format(
        "[data] no tokenizer of {} tokens from {} bytes of text: {}", training.vocabulary,
        lines.bytes(), reason.substr(0, reason.find(" Increase"))));
  }
  if (auto written = WriteFile(training.output, model); !written.ok()) return written;
  return TokenizerSummary{*total, lines.bytes(), training.vocabulary};
}

struct EncodeCache::Words {
  absl::flat_hash_map<std::string, std::vector<int32_t>> tokens;
};

EncodeCache::EncodeCache() : words_(std::make_unique<Words>()) {}
EncodeCache::EncodeCache(EncodeCache&&) noexcept = default;
EncodeCache::~EncodeCache() = default;

absl::StatusOr<Tokenizer> Tokenizer::Load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::ErrnoToStatus(errno, fmt::format("[data] tokenizer {}: cannot open", path));
  }
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  auto model = SentencePieceModel::FromBytes(bytes);
  if (model == nullptr) {
    return absl::InvalidArgumentError(fmt::format(
        "[data] tokenizer {} is not a SentencePiece model; moesaic data tokenizer makes one",
        path));
  }
  return Tokenizer(std::move(model));
}

Tokenizer::Tokenizer(std::unique_ptr<SentencePieceModel> model) : model_(std::move(model)) {
  text_of_token_.resize(model_->size());
  token_of_byte_.assign(256, -1);
  for (int32_t token = 0; token < model_->size(); ++token) {
    const std::string& piece = model_->piece(token);
    std::string& text = text_of_token_[token];
    switch (model_->kind(token)) {
      case PieceKind::kByte: {
        const auto byte = std::stoul(piece.substr(3, 2), nullptr, 16);  // "<0xAB>"
        token_of_byte_[byte] = token;
        text = static_cast<char>(byte);
        break;
      }
      case PieceKind::kText:
        text = WithSpaces(piece);
        break;
      case PieceKind::kUnknown:
        text = "\xef\xbf\xbd";
        break;  // U+FFFD
      case PieceKind::kControl:
        break;
    }
  }
  if (std::find(token_of_byte_.begin(), token_of_byte_.end(), -1) != token_of_byte_.end()) {
    token_of_byte_.clear();
  }
  end_of_document_ = model_->end_of_sentence();
  const std::vector<int> probe = model_->Encode("a");
  adds_space_ = !probe.empty() && text_of_token_[probe[0]].substr(0, 1) == " ";
  words_stand_alone_ = WordsStandAlone();
}

Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

int64_t Tokenizer::vocabulary() const { return static_cast<int64_t>(text_of_token_.size()); }

bool Tokenizer::WordsStandAlone() const {
  if (token_of_byte_.empty() || adds_space_) return false;
  for (int32_t token = 0; token < model_->size(); ++token) {
    const std::string& text = text_of_token_[token];
    if (model_->kind(token) != PieceKind::kText) continue;
    if (text.find(' ', 1) != std::string::npos) return false;
    if (text.find('\n') < text.size() - 1) return false;
  }
  constexpr char kSpaced[] = " a  b ";  // a model may drop spaces, which depends on its neighbours
  return *Decode(Encode(kSpaced)) == kSpaced;
}

std::vector<int32_t> Tokenizer::Encode(absl::string_view text) const {
  return Encode(text, nullptr);
}

std::vector<int32_t> Tokenizer::Encode(absl::string_view text, EncodeCache* cache) const {
  std::vector<int32_t> tokens;
  std::string_view rest(text.data(), text.size());
  if (token_of_byte_.empty() || adds_space_) {
    EncodeText(rest, &tokens);
    return tokens;
  }
  while (!rest.empty()) {
    const size_t plain = PlainBytes(rest);
    if (plain > 0) EncodePlain(rest.substr(0, plain), cache, &tokens);
    rest.remove_prefix(plain);
    if (rest.empty()) break;
    const size_t bytes = rest.substr(0, kSpaceMark.size()) == kSpaceMark ? kSpaceMark.size() : 1;
    for (const char c : rest.substr(0, bytes)) {
      tokens.push_back(token_of_byte_[static_cast<unsigned char>(c)]);
    }
    rest.remove_prefix(bytes);
  }
  return tokens;
}

void Tokenizer::EncodePlain(std::string_view text, EncodeCache* cache,
                            std::vector<int32_t>* tokens) const {
  if (cache == nullptr || !words_stand_alone_) return EncodeText(text, tokens);
  auto& known = cache->words_->tokens;
  while (!text.empty()) {
    const size_t bytes = WordBytes(text);
    const std::string_view word = text.substr(0, bytes);
    text.remove_prefix(bytes);
    if (bytes > kCachedWordBytes) {
      EncodeText(word, tokens);
      continue;
    }
    auto entry = known.find(absl::string_view(word.data(), word.size()));
    if (entry == known.end()) {
      if (known.size() >= kCachedWords) known.clear();
      const std::vector<int> ids = model_->Encode(word);
      entry = known.emplace(word, std::vector<int32_t>(ids.begin(), ids.end())).first;
    }
    tokens->insert(tokens->end(), entry->second.begin(), entry->second.end());
  }
}

void Tokenizer::EncodeText(std::string_view text, std::vector<int32_t>* tokens) const {
  const std::vector<int> ids = model_->Encode(text);
  tokens->insert(tokens->end(), ids.begin(), ids.end());
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> tokens) const {
  std::string text;
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocabulary()) {
      return absl::InvalidArgumentError(fmt::format(
          "[data] token {} is outside the tokenizer's vocabulary of {}", token, vocabulary()));
    }
    text += text_of_token_[token];
  }
  if (adds_space_ && !text.empty() && text[0] == ' ') text.erase(0, 1);
  return text;
}

absl::StatusOr<uint32_t> TokenizerVocabulary(const std::string& path) {
  const auto tokenizer = Tokenizer::Load(path);
  if (!tokenizer.ok()) return tokenizer.status();
  return static_cast<uint32_t>(tokenizer->vocabulary());
}

}  // namespace moesaic
