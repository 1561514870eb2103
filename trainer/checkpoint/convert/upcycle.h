// Upcycling: a model with experts that is made of a dense one. Everything but the feed-forward of the
// layers that get experts stays as it is, routers begin as in a new run, and each expert is a piece of
// the layer's feed-forward.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/job.pb.h"
#include "trainer/checkpoint/convert/first_step.h"
#include "trainer/checkpoint/format/commit.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

enum class UpcycleMethod {
  // Each expert is the dense layer, and the weights of a token's experts sum up to 1: the model
  // computes what the dense one did ("sparse upcycling", arXiv 2212.05055).
  kCopy,
  // The dense layer in g pieces of its hidden units, each so many times that there are
  // model.moe.experts; pieces of one copy lie side by side and their router rows are equal. With
  // model.moe.active a multiple of g a token takes whole copies, and with weights that sum up to g the
  // model computes what the dense one did. (Experts of one score are chosen by number; the rows grow
  // apart in training.)
  kGranular,
  // Copies, of each of which another random share of the weights is zero (spawn_mask.h).
  kSpawn,
};

struct Upcycle {
  std::string from;  // a step folder, a root (its newest step), or a Hugging Face folder
  std::string to;    // a checkpoint root without steps, made where missing
  JobSpec spec;      // of the model with experts: resolved, with model.vocabulary
  UpcycleMethod method = UpcycleMethod::kCopy;
  double mask = 0;  // kSpawn: the share of zeros, below 1
  bool rescale = false;
  // The moments of AdamW go the way of the weights, those of routers are zero, and the count of updates
  // goes on: the result is one to resume from, not parameters alone.
  bool keep_moments = false;
  int threads = 1;  // for the verification of `from`
  std::string binary;
  absl::Time created;
  ByteProgress progress;  // of what is written
};

// Verifies `from` where it is a checkpoint, and writes step 0 of `to`, holding a few pieces of a few
// MiB in memory. FailedPrecondition: `from` is no dense model, or another one but for its experts; or
// the job's router keeps the method from giving what the dense model computes. DataLoss: `from` is
// damaged. Errors of TensorFolder::Open and CommitFirstStep.
absl::StatusOr<CommittedStep> UpcycleModel(FileSystem* files, const Upcycle& upcycle);

}  // namespace moesaic
