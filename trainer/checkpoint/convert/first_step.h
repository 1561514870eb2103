// FirstStep: a checkpoint that no run made, as the step 0 of a root.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/checkpoint.pb.h"
#include "proto/job.pb.h"
#include "trainer/checkpoint/format/commit.h"
#include "trainer/checkpoint/format/file_system.h"
#include "trainer/checkpoint/format/shard_files.h"

namespace moesaic {

// Called now and then with the bytes that are done and those that will be; may be empty.
using ByteProgress = std::function<void(int64_t done, int64_t total)>;

struct FirstStep {
  std::string to;         // a checkpoint root without steps, made where missing
  std::string tokenizer;  // a SentencePiece model to copy; empty: none
  std::string binary;     // who made it, for the manifest
  std::string origin;     // what it was made of, for the manifest
  absl::Time created;
  JobSpec spec;  // resolved
  // What the job's catalogue lists: masters, and the moments unless weights_only.
  std::vector<ShardSource> sources;
  bool weights_only = true;
  TrainingState state;
  ByteProgress progress;
};

// AlreadyExists: `to` has steps. After any error nothing is committed. Errors of sources pass
// through.
absl::StatusOr<CommittedStep> CommitFirstStep(FileSystem* files, FirstStep step);

}  // namespace moesaic
