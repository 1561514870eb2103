// Import of a Hugging Face folder (tensor_folder.h), stored as fp32 masters. architecture.h says which
// models have a counterpart here, and which tensor becomes which parameter.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "trainer/checkpoint/convert/first_step.h"
#include "trainer/checkpoint/format/commit.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

struct FolderImport {
  std::string from;       // the Hugging Face folder
  std::string to;         // a checkpoint root without steps, made where missing
  std::string tokenizer;  // a SentencePiece model to copy; empty: none
  std::string binary;     // who imports, for the manifest
  absl::Time created;
  ByteProgress progress;  // of what is written
};

// Writes step 0 of `to`, with weights_only set, holding one tensor's chunk in memory at a time. Errors
// as of TensorFolder::Open and CommitFirstStep.
absl::StatusOr<CommittedStep> ImportFolder(FileSystem* files, const FolderImport& import);

}  // namespace moesaic
