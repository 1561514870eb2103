// Restore: a trainer's parameters and state from a checkpoint, whatever layout wrote it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "proto/job.pb.h"
#include "trainer/loop/trainer.h"

namespace moesaic {

// Everything: masters, moments and TrainingState, of what this rank owns. `folder`: a step folder or
// a root (its newest step). FailedPrecondition: a checkpoint of another model, with the fields that
// differ; or one of weights only. DataLoss: corrupt, naming file and object. NotFound.
// The caller publishes the weights afterwards.
absl::Status RestoreTraining(const std::string& folder, const JobSpec& spec, Trainer& trainer);

// Masters only; the training state stays. For train.init_from, generation and evaluation.
absl::Status RestoreWeights(const std::string& folder, const JobSpec& spec, Trainer& trainer);

}  // namespace moesaic
