// Generator: text from a checkpoint, in one process.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "trainer/generate/token_sampler.h"

namespace moesaic {

struct GenerateRequest {
  std::string prompt;
  int64_t tokens = 100;  // at most so many new ones; fewer when the model ends the document
  SamplingOptions sampling;
};

struct GenerateSummary {
  int64_t prompt_tokens = 0;
  int64_t new_tokens = 0;
  double seconds = 0;
};

// Thread-compatible.
class Generator {
 public:
  // `checkpoint`: a step folder or a root (its newest step). `tokenizer`: a SentencePiece model;
  // empty: the one stored with the checkpoint. NotFound, DataLoss (naming file and object),
  // FailedPrecondition (no tokenizer; it does not fit the model).
  static absl::StatusOr<std::unique_ptr<Generator>> Open(const std::string& checkpoint,
                                                         const std::string& tokenizer, int threads);
  virtual ~Generator() = default;

  // Calls `piece` with each new piece of text as it is known (whole characters only). Same request,
  // same text. InvalidArgument: an empty prompt.
  virtual absl::StatusOr<GenerateSummary> Generate(
      const GenerateRequest& request,
      const std::function<void(absl::string_view piece)>& piece) = 0;
};

}  // namespace moesaic
