#include "trainer/data/batch_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace moesaic {
namespace {

void Reserve(int64_t count, const SampleShape& shape, SampleBatch* batch) {
  const auto tokens = static_cast<size_t>(count * shape.sequence);
  batch->tokens.reserve(tokens);
  batch->targets.reserve(tokens);
  if (shape.document_boundaries) batch->document_starts.reserve(tokens);
}

}  // namespace

absl::StatusOr<SampleFile> SampleFile::Open(absl::string_view prefix, const SampleShape& shape) {
  auto tokens = IndexedTokens::Open(prefix);
  if (!tokens.ok()) return tokens.status();
  if (tokens->tokens() <= shape.sequence) {
    return absl::InvalidArgumentError(fmt::format(
        "[data] {}.bin has {} tokens, too few for one sample of {} and its last target; take a "
        "shorter model.sequence or more text",
        tokens->prefix(), tokens->tokens(), shape.sequence));
  }
  return SampleFile(*std::move(tokens), shape);
}

absl::Status SampleFile::Append(int64_t i, SampleBatch* batch) const {
  const int64_t begin = i * shape_.sequence;
  std::vector<int64_t> covered(shape_.sequence + 1);
  tokens_.Read(begin, covered);
  if (auto status = CheckVocabulary(begin, covered); !status.ok()) return status;
  batch->tokens.insert(batch->tokens.end(), covered.begin(), covered.end() - 1);
  batch->targets.insert(batch->targets.end(), covered.begin() + 1, covered.end());
  batch->target_count += CountTargets(i);
  if (shape_.document_boundaries) MarkDocuments(i, batch);
  return absl::OkStatus();
}

int64_t SampleFile::CountTargets(int64_t i) const {
  if (!shape_.document_boundaries) return shape_.sequence;
  const auto starts = tokens_.index().DocumentStarts(i * shape_.sequence + 1, shape_.sequence);
  return shape_.sequence - static_cast<int64_t>(starts.size());
}

absl::Status SampleFile::CheckVocabulary(int64_t begin, std::span<const int64_t> tokens) const {
  const auto alien = std::find_if(tokens.begin(), tokens.end(), [&](int64_t token) {
    return token < 0 || token >= shape_.vocabulary;
  });
  if (alien == tokens.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("[data] {}.bin has token {} at position {}, outside the vocabulary of {}; was it "
                  "prepared with "
                  "another tokenizer than data.tokenizer?",
                  tokens_.prefix(), *alien, begin + (alien - tokens.begin()), shape_.vocabulary));
}

void SampleFile::MarkDocuments(int64_t i, SampleBatch* batch) const {
  const int64_t begin = i * shape_.sequence;
  const size_t row = batch->document_starts.size();
  batch->document_starts.resize(row + shape_.sequence, 0);
  for (const int64_t start : tokens_.index().DocumentStarts(begin, shape_.sequence + 1)) {
    const int64_t at = start - begin;
    if (at > 0) batch->targets[row + at - 1] = -1;
    std::fill(batch->document_starts.begin() + static_cast<int64_t>(row) + at,
              batch->document_starts.end(), static_cast<int32_t>(at));
  }
}

absl::StatusOr<TrainingData> TrainingData::Open(const DataSpec& data, const SampleShape& shape,
                                                uint64_t seed) {
  std::vector<SampleFile> files;
  std::vector<SampleSource> sources;
  for (const DataSource& source : data.train()) {
    auto file = SampleFile::Open(source.path(), shape);
    if (!file.ok()) return file.status();
    sources.push_back({file->samples(), source.weight()});
    files.push_back(*std::move(file));
  }
  auto index = SampleIndex::Build(sources, seed);
  if (!index.ok()) return index.status();
  return TrainingData(std::move(files), *std::move(index), shape);
}

absl::StatusOr<SampleBatch> TrainingData::Read(int64_t first, int64_t count) const {
  SampleBatch batch;
  Reserve(count, shape_, &batch);
  for (int64_t g = first; g < first + count; ++g) {
    const SamplePlace place = index_.At(g);
    if (auto status = files_[place.source].Append(place.sample, &batch); !status.ok())
      return status;
  }
  return batch;
}

int64_t TrainingData::CountTargets(int64_t first, int64_t count) const {
  if (!shape_.document_boundaries) return count * shape_.sequence;
  int64_t targets = 0;
  for (int64_t g = first; g < first + count; ++g) {
    const SamplePlace place = index_.At(g);
    targets += files_[place.source].CountTargets(place.sample);
  }
  return targets;
}

int64_t TrainingData::samples() const {
  int64_t samples = 0;
  for (const SampleFile& file : files_) samples += file.samples();
  return samples;
}

absl::StatusOr<ValidationData> ValidationData::Open(const DataSpec& data, const SampleShape& shape,
                                                    int64_t limit) {
  ValidationData validation(shape);
  for (const DataSource& source : data.validation()) {
    if (source.has_weight() && source.weight() != 1) {
      return absl::InvalidArgumentError(
          fmt::format("[data] data.validation: {} has weight {}; validation sources are read one "
                      "after the other and take no weight",
                      source.path(), source.weight()));
    }
    auto file = SampleFile::Open(source.path(), shape);
    if (!file.ok()) return file.status();
    validation.samples_ += file->samples();
    validation.files_.push_back(*std::move(file));
  }
  if (limit > 0) validation.samples_ = std::min(validation.samples_, limit);
  return validation;
}

ValidationData::Place ValidationData::At(int64_t v) const {
  auto file = files_.begin();
  for (; v >= file->samples(); ++file) v -= file->samples();
  return {&*file, v};
}

absl::StatusOr<SampleBatch> ValidationData::Read(int64_t first, int64_t count) const {
  SampleBatch batch;
  Reserve(count, shape_, &batch);
  for (int64_t v = first; v < first + count; ++v) {
    const Place place = At(v);
    if (auto status = place.file->Append(place.sample, &batch); !status.ok()) return status;
  }
  return batch;
}

int64_t ValidationData::CountTargets(int64_t first, int64_t count) const {
  int64_t targets = 0;
  for (int64_t v = first; v < first + count; ++v) {
    const Place place = At(v);
    targets += place.file->CountTargets(place.sample);
  }
  return targets;
}

}  // namespace moesaic
