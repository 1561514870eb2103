// SentencePieceModel: the SentencePiece library behind standard types only. Its header declares
// names in namespace absl that clash with Abseil's, so it is included in sentencepiece_model.cc
// alone, and nothing here may include Abseil.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace moesaic {

enum class PieceKind { kText, kByte, kControl, kUnknown };

// Immutable, so thread-safe.
class SentencePieceModel {
 public:
  // Null when `bytes` are not a model.
  static std::unique_ptr<SentencePieceModel> FromBytes(const std::string& bytes);
  ~SentencePieceModel();

  int32_t size() const;
  PieceKind kind(int32_t token) const;
  const std::string& piece(int32_t token) const;
  int32_t end_of_sentence() const;  // -1: none
  std::vector<int> Encode(std::string_view text) const;

 private:
  struct Library;
  explicit SentencePieceModel(std::unique_ptr<Library> library);

  std::unique_ptr<Library> library_;
};

struct SentencePieceTraining {
  std::unordered_map<std::string, std::string> flags;
  // The next line of text; null at the end. The string is valid until the next call.
  std::function<const std::string*()> next_line;
};

// Trains a model into `bytes`. Returns what was wrong; empty: nothing.
std::string TrainSentencePiece(const SentencePieceTraining& training, std::string* bytes);

}  // namespace moesaic
