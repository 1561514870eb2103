// Evaluate: the validation loss and the routing of a checkpoint, in one process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/metrics/validation_routing.h"
#include "trainer/model/ablation.h"

namespace moesaic {

struct EvaluateRequest {
  std::string checkpoint;         // a step folder or a root (its newest step)
  // Indexed token files to read instead of the validation sources of the checkpoint's job.
  std::vector<std::string> data;
  uint64_t samples = 0;           // from their start; 0: all
  int threads = 1;
  Ablation ablation = {};
};

struct Evaluation {
  uint64_t step = 0;
  double loss = 0;       // mean over targets, nats
  double perplexity = 0;
  uint64_t samples = 0;
  double seconds = 0;
  ValidationRouting routing = {};
};

// NotFound: no checkpoint or token file. DataLoss: one that is damaged. FailedPrecondition: token
// files of another vocabulary. InvalidArgument: the ablation does not fit the model as it is at
// that step.
absl::StatusOr<Evaluation> Evaluate(const EvaluateRequest& request);

}  // namespace moesaic
