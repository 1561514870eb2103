// Export of a checkpoint as a Hugging Face folder: config.json, and model.safetensors or shards with
// model.safetensors.index.json. The inverse of import.h.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"
#include "trainer/checkpoint/convert/first_step.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

struct FolderExport {
  std::string from;  // a step folder, or a root (its newest step)
  std::string to;    // a folder without files, made where missing
  std::string as;    // an architecture's name; empty: the one that the model can be said in
  ElementKind element = ELEMENT_BF16;  // or ELEMENT_F32; bf16 rounds to nearest even
  uint64_t max_file_bytes = 5'000'000'000;  // of tensors a file; a larger tensor has its own
  int threads = 1;                          // for the verification
  ByteProgress progress;                    // of verification and of writing, together
};

struct ExportedModel {
  uint64_t step = 0;
  std::string architecture;
  uint64_t bytes = 0;  // of tensors
  int files = 0;       // of tensors
};

// Verifies the step in full, then writes its masters, holding a few MiB in memory at a time;
// config.json comes last. Copies the tokenizer, when the step has one. FailedPrecondition: the model
// has no counterpart there (ArchitectureOf). DataLoss: the step does not verify. AlreadyExists: `to`
// has files. After any error `to` has no file that this call wrote.
absl::StatusOr<ExportedModel> ExportFolder(FileSystem* files, const FolderExport& request);

}  // namespace moesaic
