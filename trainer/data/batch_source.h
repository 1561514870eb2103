// TrainingData and ValidationData: the job's samples as numbers, ready to become a MicroBatch.
//
// Sample i of a source covers tokens [i S, i S + S] of its stream, S being the sequence length: the
// first S are the inputs, the last S the targets. A source of T tokens has floor((T - 1) / S)
// samples; what is left at the end is not used.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/job.pb.h"
#include "trainer/data/indexed_tokens.h"
#include "trainer/data/sample_index.h"

namespace moesaic {

// `count` consecutive samples, in the form of MicroBatch.
struct SampleBatch {
  std::vector<int64_t> tokens;   // [count * sequence]
  std::vector<int64_t> targets;  // [count * sequence]; -1: not a target
  // [count * sequence]: for each token, the position in its sequence where its document starts.
  // Empty without document boundaries.
  std::vector<int32_t> document_starts;
  int64_t target_count = 0;
};

struct SampleShape {
  int64_t sequence = 0;    // tokens a sample, > 0
  int64_t vocabulary = 0;  // token ids are below it, > 0
  // Attention stays within a document, and a token that starts a document is not a target.
  bool document_boundaries = false;
};

// One indexed token file seen as samples. Immutable, so thread-safe.
class SampleFile {
 public:
  // Errors of IndexedTokens::Open; InvalidArgument when the file is too short for one sample.
  static absl::StatusOr<SampleFile> Open(absl::string_view prefix, const SampleShape& shape);

  int64_t samples() const { return (tokens_.tokens() - 1) / shape_.sequence; }
  const IndexedTokens& tokens() const { return tokens_; }

  // Appends sample `i` to `batch`. InvalidArgument when a token id is not in the vocabulary.
  absl::Status Append(int64_t i, SampleBatch* batch) const;

  // The targets of sample `i`, without reading tokens.
  int64_t CountTargets(int64_t i) const;

 private:
  SampleFile(IndexedTokens tokens, const SampleShape& shape)
      : tokens_(std::move(tokens)), shape_(shape) {}

  absl::Status CheckVocabulary(int64_t begin, std::span<const int64_t> tokens) const;
  void MarkDocuments(int64_t i, SampleBatch* batch) const;

  IndexedTokens tokens_;
  SampleShape shape_;
};

// The endless, shuffled, weighted stream of training samples. Equal for equal (DataSpec, shape,
// seed) on any number of ranks; a change of the sources or their weights starts another order.
// Immutable, so thread-safe.
class TrainingData {
 public:
  // Errors of SampleFile::Open and SampleIndex::Build.
  static absl::StatusOr<TrainingData> Open(const DataSpec& data, const SampleShape& shape,
                                           uint64_t seed);

  // Samples [first, first + count) of the run. `first` is a data cursor: global samples consumed.
  absl::StatusOr<SampleBatch> Read(int64_t first, int64_t count) const;

  // Targets of the same samples, cheaply: the step's global count is known before it computes.
  int64_t CountTargets(int64_t first, int64_t count) const;

  // Where sample `g` comes from.
  SamplePlace Place(int64_t g) const { return index_.At(g); }
  std::span<const SampleFile> files() const { return files_; }
  // Samples of one epoch of every source.
  int64_t samples() const;

 private:
  TrainingData(std::vector<SampleFile> files, SampleIndex index, const SampleShape& shape)
      : files_(std::move(files)), index_(std::move(index)), shape_(shape) {}

  std::vector<SampleFile> files_;
  SampleIndex index_;
  SampleShape shape_;
};

// The first samples of the validation sources, one source after the other, in file order.
// Immutable, so thread-safe.
class ValidationData {
 public:
  // `limit` samples at most; 0: all. Without validation sources there are no samples. Errors of
  // SampleFile::Open; InvalidArgument when a validation source has a weight other than 1.
  static absl::StatusOr<ValidationData> Open(const DataSpec& data, const SampleShape& shape,
                                             int64_t limit);

  int64_t samples() const { return samples_; }
  // Samples [first, first + count), within samples().
  absl::StatusOr<SampleBatch> Read(int64_t first, int64_t count) const;
  int64_t CountTargets(int64_t first, int64_t count) const;

 private:
  explicit ValidationData(const SampleShape& shape) : shape_(shape) {}

  struct Place {
    const SampleFile* file;
    int64_t sample;
  };
  Place At(int64_t v) const;

  std::vector<SampleFile> files_;
  SampleShape shape_;
  int64_t samples_ = 0;
};

}  // namespace moesaic
