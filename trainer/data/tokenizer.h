// Tokenizer: text to token ids and back, by a SentencePiece model.
//
// Models trained here are byte-pair models without normalisation: whitespace is kept as it is, what
// the vocabulary lacks falls back to bytes, and Decode(Encode(text)) == text for any bytes. Models
// trained elsewhere work too, with whatever their own normalisation changes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace moesaic {

class SentencePieceModel;

struct TokenizerTraining {
  std::vector<std::string> inputs;  // text files
  std::string output;               // the model file
  int64_t vocabulary = 4096;
  // Lines are read up to so many bytes; of longer inputs an even share of the lines is taken,
  // chosen by their hash. Training holds them in memory, several times over.
  int64_t sample_bytes = int64_t{256} << 20;
};

struct TokenizerSummary {
  int64_t input_bytes = 0;
  int64_t sampled_bytes = 0;
  int64_t vocabulary = 0;
};

// Trains a model and writes it under a temporary name, then renames it. Equal inputs give equal
// bytes. NotFound when an input is missing; InvalidArgument when the text cannot fill the
// vocabulary or the vocabulary is too small for its characters; else the system's error, as
// absl::ErrnoToStatus maps it.
absl::StatusOr<TokenizerSummary> TrainTokenizer(const TokenizerTraining& training);

// The tokens of words that one thread has met, because text repeats its words. Belongs to one
// tokenizer. Thread-compatible.
class EncodeCache {
 public:
  EncodeCache();
  EncodeCache(EncodeCache&&) noexcept;
  ~EncodeCache();

 private:
  friend class Tokenizer;
  struct Words;
  std::unique_ptr<Words> words_;
};

// Immutable, so thread-safe. Movable.
class Tokenizer {
 public:
  // NotFound when there is no such file; InvalidArgument when it is not a SentencePiece model.
  static absl::StatusOr<Tokenizer> Load(const std::string& path);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  int64_t vocabulary() const;
  // The token that ends a document; -1 when the model has none.
  int32_t end_of_document() const { return end_of_document_; }

  std::vector<int32_t> Encode(absl::string_view text) const;
  // The same tokens, sooner.
  std::vector<int32_t> Encode(absl::string_view text, EncodeCache* cache) const;

  // The text of `tokens`. Control tokens have none. InvalidArgument for an id outside the
  // vocabulary.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> tokens) const;

 private:
  explicit Tokenizer(std::unique_ptr<SentencePieceModel> model);

  // `cache` may be null.
  void EncodePlain(std::string_view text, EncodeCache* cache, std::vector<int32_t>* tokens) const;
  void EncodeText(std::string_view text, std::vector<int32_t>* tokens) const;
  bool WordsStandAlone() const;

  std::unique_ptr<SentencePieceModel> model_;
  std::vector<std::string> text_of_token_;
  std::vector<int32_t> token_of_byte_;  // empty: the model does not fall back to bytes
  bool words_stand_alone_ = false;      // no token crosses a line end or the start of a space
  bool adds_space_ = false;             // the model puts a space before every text
  int32_t end_of_document_ = -1;
};

// Tokens of the model file at `path`. Errors of Tokenizer::Load.
absl::StatusOr<uint32_t> TokenizerVocabulary(const std::string& path);

}  // namespace moesaic
