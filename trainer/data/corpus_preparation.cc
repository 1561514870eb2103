#include "trainer/data/corpus_preparation.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <cmath>
#include <deque>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <utility>

#include "trainer/data/indexed_tokens.h"

namespace moesaic {
namespace {

constexpr int64_t kPieceBytes = int64_t{64} << 10;
constexpr int64_t kBatchBytes = int64_t{512} << 10;

struct EncodedPiece {
  uint64_t hash = 0;  // of the text
  bool starts_document = false;
  std::vector<int32_t> tokens;
};

std::vector<EncodedPiece> Encode(const std::vector<TextPiece>& pieces, const Tokenizer& tokenizer,
                                 EncodeCache* cache) {
  std::vector<EncodedPiece> encoded;
  encoded.reserve(pieces.size());
  for (const TextPiece& piece : pieces) {
    encoded.push_back({XXH3_64bits(piece.text.data(), piece.text.size()), piece.starts_document,
                       tokenizer.Encode(piece.text, cache)});
  }
  return encoded;
}

// One part on its way to disk.
class PartWriter {
 public:
  static absl::StatusOr<std::unique_ptr<PartWriter>> Create(const std::string& prefix,
                                                            int64_t vocabulary) {
    auto writer = IndexedTokenWriter::Create(prefix, TokenTypeForVocabulary(vocabulary));
    if (!writer.ok()) return writer.status();
    return std::unique_ptr<PartWriter>(new PartWriter(*std::move(writer), vocabulary));
  }

  absl::Status Append(std::span<const int32_t> tokens) {
    for (const int32_t token : tokens) ++counts_[token];
    return writer_->Append(tokens);
  }
  void EndDocument() { writer_->EndDocument(); }
  absl::Status Finish() { return writer_->Finish(); }

  CorpusPart Summary() const {
    CorpusPart part{writer_->documents(), writer_->tokens(), 0};
    for (const int64_t count : counts_) {
      if (count == 0) continue;
      const double p = static_cast<double>(count) / static_cast<double>(part.tokens);
      part.unigram_entropy -= p * std::log(p);
    }
    return part;
  }

 private:
  PartWriter(std::unique_ptr<IndexedTokenWriter> writer, int64_t vocabulary)
      : writer_(std::move(writer)), counts_(vocabulary, 0) {}

  std::unique_ptr<IndexedTokenWriter> writer_;
  std::vector<int64_t> counts_;  // by token
};

// Where encoded pieces go, in the order of the input.
class CorpusWriter {
 public:
  static absl::StatusOr<CorpusWriter> Create(const CorpusPreparation& preparation,
                                             const Tokenizer& tokenizer) {
    CorpusWriter writer;
    auto train = PartWriter::Create(preparation.output, tokenizer.vocabulary());
    if (!train.ok()) return train.status();
    writer.train_ = *std::move(train);
    if (!preparation.validation_output.empty()) {
      auto part = PartWriter::Create(preparation.validation_output, tokenizer.vocabulary());
      if (!part.ok()) return part.status();
      writer.validation_ = *std::move(part);
      writer.share_ = preparation.validation_share;
    }
    if (preparation.end_documents) writer.end_ = tokenizer.end_of_document();
    return writer;
  }

  absl::Status Append(const EncodedPiece& piece) {
    if (piece.starts_document) {
      if (auto status = EndDocument(); !status.ok()) return status;
      const bool validates = static_cast<double>(piece.hash) < share_ * 0x1p64;
      document_ = validates ? validation_.get() : train_.get();
    }
    return document_->Append(piece.tokens);
  }

  absl::StatusOr<CorpusSummary> Finish(int64_t input_bytes) {
    if (auto status = EndDocument(); !status.ok()) return status;
    CorpusSummary summary{input_bytes, train_->Summary(), {}};
    if (validation_ != nullptr) summary.validation = validation_->Summary();
    if (summary.train.documents == 0 ||
        (validation_ != nullptr && summary.validation.documents == 0)) {
      return absl::InvalidArgumentError(fmt::format(
          "[data] of {} documents, {} are for training and {} for validation; give more text, "
          "another document separator or another validation share",
          summary.train.documents + summary.validation.documents, summary.train.documents,
          summary.validation.documents));
    }
    if (auto status = train_->Finish(); !status.ok()) return status;
    if (validation_ == nullptr) return summary;
    if (auto status = validation_->Finish(); !status.ok()) return status;
    return summary;
  }

 private:
  absl::Status EndDocument() {
    if (document_ == nullptr) return absl::OkStatus();
    if (end_.has_value()) {
      if (auto status = document_->Append({&*end_, 1}); !status.ok()) return status;
    }
    document_->EndDocument();
    document_ = nullptr;
    return absl::OkStatus();
  }

  std::unique_ptr<PartWriter> train_;
  std::unique_ptr<PartWriter> validation_;  // may be null
  double share_ = 0;
  std::optional<int32_t> end_;
  PartWriter* document_ = nullptr;  // the part of the open document
};

// Encodes on several threads and writes in order. At most `threads` batches are under way.
class EncodePipeline {
 public:
  EncodePipeline(const CorpusPreparation& preparation, const Tokenizer& tokenizer,
                 CorpusWriter* writer)
      : tokenizer_(tokenizer), caches_(preparation.threads), writer_(writer) {}

  absl::Status Add(TextPiece piece) {
    batch_bytes_ += static_cast<int64_t>(piece.text.size());
    batch_.push_back(std::move(piece));
    return batch_bytes_ < kBatchBytes ? absl::OkStatus() : Flush();
  }

  absl::Status Finish() {
    if (auto status = Flush(); !status.ok()) return status;
    while (!under_way_.empty()) {
      if (auto status = WriteOldest(); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Flush() {
    absl::Status status;
    if (under_way_.size() >= caches_.size()) status = WriteOldest();
    EncodeCache* cache = &caches_[batches_++ % caches_.size()];
    under_way_.push_back(
        std::async(std::launch::async, [this, cache, pieces = std::exchange(batch_, {})] {
          return Encode(pieces, tokenizer_, cache);
        }));
    batch_bytes_ = 0;
    return status;
  }

  absl::Status WriteOldest() {
    const std::vector<EncodedPiece> pieces = under_way_.front().get();
    under_way_.pop_front();
    for (const EncodedPiece& piece : pieces) {
      if (auto status = writer_->Append(piece); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  const Tokenizer& tokenizer_;
  std::vector<EncodeCache> caches_;  // one a thread: batch b has cache b mod threads
  size_t batches_ = 0;
  CorpusWriter* writer_;
  std::vector<TextPiece> batch_;
  int64_t batch_bytes_ = 0;
  std::deque<std::future<std::vector<EncodedPiece>>> under_way_;
};

absl::Status Check(const CorpusPreparation& preparation, const Tokenizer& tokenizer) {
  const double share = preparation.validation_share;
  if (!preparation.validation_output.empty() && !(share > 0 && share < 1)) {
    return absl::InvalidArgumentError(
        fmt::format("[data] the validation share is {}; it must be between 0 and 1", share));
  }
  if (preparation.output == preparation.validation_output) {
    return absl::InvalidArgumentError("[data] both parts have the same name");
  }
  if (preparation.threads < 1) {
    return absl::InvalidArgumentError(
        fmt::format("[data] {} threads; there must be one", preparation.threads));
  }
  if (preparation.end_documents && tokenizer.end_of_document() < 0) {
    return absl::InvalidArgumentError(
        "[data] the tokenizer has no end-of-document token; prepare without one");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CorpusSummary> PrepareCorpus(const CorpusPreparation& preparation,
                                            const Tokenizer& tokenizer,
                                            const CorpusProgress& progress) {
  if (auto status = Check(preparation, tokenizer); !status.ok()) return status;
  const auto total = TotalBytes(preparation.inputs);
  if (!total.ok()) return total.status();
  auto writer = CorpusWriter::Create(preparation, tokenizer);
  if (!writer.ok()) return writer.status();
  EncodePipeline pipeline(preparation, tokenizer, &*writer);
  int64_t bytes_before = 0;  // of the files that are done
  for (const std::string& input : preparation.inputs) {
    auto reader = DocumentReader::Open(input, preparation.separator, kPieceBytes);
    if (!reader.ok()) return reader.status();
    while (true) {
      TextPiece piece;
      const auto more = reader->Next(&piece);
      if (!more.ok()) return more.status();
      if (!*more) break;
      if (auto status = pipeline.Add(std::move(piece)); !status.ok()) return status;
      progress(bytes_before + reader->bytes_done(), *total);
    }
    bytes_before += reader->bytes_done();
  }
  if (auto status = pipeline.Finish(); !status.ok()) return status;
  progress(bytes_before, *total);
  return writer->Finish(bytes_before);
}

}  // namespace moesaic
