// Export of a checkpoint as a Hugging Face Mixtral folder: config.json, and model.safetensors or
// shards with model.safetensors.index.json. The inverse of import_mixtral.h.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"
#include "proto/job.pb.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

struct MixtralExport {
  std::string from;  // a step folder, or a root (its newest step)
  std::string to;    // a folder without files, made where missing
  ElementKind element = ELEMENT_BF16;  // or ELEMENT_F32; bf16 rounds to nearest even
  uint64_t max_file_bytes = 5'000'000'000;  // of tensors a file; a larger tensor has its own
  int threads = 1;                          // for the verification
  // Called now and then with the bytes that are done, of verification and of writing, and all of
  // them; may be empty.
  std::function<void(int64_t done, int64_t total)> progress;
};

struct ExportedModel {
  uint64_t step = 0;
  uint64_t bytes = 0;  // of tensors
  int files = 0;       // of tensors
};

// Verifies the step in full, then writes its masters, holding a few MiB in memory at a time;
// config.json comes last. Copies the tokenizer, when the step has one. FailedPrecondition: the model
// has no counterpart there. DataLoss: the step does not verify. AlreadyExists: `to` has files.
// After any error `to` has no file that this call wrote.
absl::StatusOr<ExportedModel> ExportMixtral(FileSystem* files, const MixtralExport& request);

// The config.json of a job's model. FailedPrecondition names what has no counterpart.
absl::StatusOr<std::string> MixtralConfigOf(const JobSpec& spec, ElementKind element);

}  // namespace moesaic
