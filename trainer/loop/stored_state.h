// StoredState: between a trainer's memory and a checkpoint, in the terms of trainer/checkpoint.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/job.pb.h"
#include "trainer/checkpoint/snapshot.h"
#include "trainer/loop/trainer.h"

namespace moesaic {

// What this rank contributes to a snapshot: masters and moments of the parameters that
// `writers` (trainer/loop/write_plan.h) gives to `rank`. Views of the trainer's memory.
std::vector<SnapshotObject> ObjectsToWrite(Trainer& trainer, std::span<const int> writers,
                                           int rank);

// Masters, moments and TrainingState of all that this rank owns, from `folder`: a step folder or a
// root (its newest step). FailedPrecondition: a checkpoint of another model, with the fields that
// differ, or one of parameters only. DataLoss: damaged, naming file and object. NotFound.
// The caller publishes the weights afterwards.
absl::Status RestoreTraining(const std::string& folder, const JobSpec& spec, int threads,
                             Trainer& trainer);

// Masters only; the training state stays. For train.init_from, evaluation and generation.
absl::Status RestoreWeights(const std::string& folder, int threads, Trainer& trainer);

}  // namespace moesaic
