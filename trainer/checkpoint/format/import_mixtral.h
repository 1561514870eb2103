// Import of a Hugging Face Mixtral folder: config.json and model.safetensors, or shards with
// model.safetensors.index.json. Dtypes F32, BF16 and F16; stored as fp32 masters.
// mixtral_names.h says which tensor becomes which parameter.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/job.pb.h"
#include "trainer/checkpoint/format/commit.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

struct MixtralImport {
  std::string from;       // the Hugging Face folder
  std::string to;         // a checkpoint root without steps, made where missing
  std::string tokenizer;  // a SentencePiece model to copy; empty: none
  std::string binary;     // who imports, for the manifest
  absl::Time created;
  // Called now and then with the bytes that are written and those that will be; may be empty.
  std::function<void(int64_t done, int64_t total)> progress;
};

// Writes step 0 of `to`, with weights_only set, holding one tensor's chunk in memory at a time.
// NotFound: a file of the folder is missing. FailedPrecondition: config.json says something that has
// no counterpart here, or tensors are missing, of another shape, or left over. DataLoss: a file is
// damaged. AlreadyExists: `to` has steps. Links are not followed: a Hugging Face cache folder, which
// is made of links, must be downloaded to a plain folder first.
absl::StatusOr<CommittedStep> ImportMixtral(FileSystem* files, const MixtralImport& import);

// The model, recipe and balance sections of a job for the model that a config.json describes, with
// defaults applied; its other sections are empty. `name` is the job's.
absl::StatusOr<JobSpec> JobOfMixtralConfig(absl::string_view config_json, const std::string& name);

}  // namespace moesaic
