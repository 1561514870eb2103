// Verification of a committed (or about to be committed) step folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/checkpoint.pb.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

enum class VerifyDepth {
  // The manifest and its hashes, the presence and size of every file, nothing else in the folder,
  // the header of every shard file against the manifest, the coverage of every object. Reads a few
  // KiB a file.
  kStructure,
  // Also the checksum of every file and of every shard. Reads all bytes.
  kContent,
};

struct VerifyReport {
  uint64_t step = 0;
  uint64_t files = 0;
  uint64_t objects = 0;
  uint64_t shards = 0;
  uint64_t bytes = 0;
  // In words, each with the file and the objects that are concerned. Empty: all is well.
  std::vector<std::string> problems;
  // Some of it could not be read for a reason that says nothing of the content (permission, I/O).
  bool unreadable = false;

  bool ok() const { return problems.empty(); }
};

// Never fails: what goes wrong is in the report.
VerifyReport VerifyStep(const Folder& step, VerifyDepth depth);

// OK, or DataLoss (Unavailable when `unreadable`) with the folder and the first few problems.
absl::Status VerifyStatus(const Folder& step, const VerifyReport& report);

}  // namespace moesaic
