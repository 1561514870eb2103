// Verification of a committed (or about to be committed) step folder.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
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

// Threads for reading: as many as cores, but a few, since one seldom fills a disk.
int ReadingThreads();

struct VerifyOptions {
  VerifyDepth depth = VerifyDepth::kContent;
  // Files are read on this many threads (the caller's is one of them), the largest first.
  int threads = 1;
  // Called now and then with the bytes that are read and those that will be, from one thread at a
  // time; may be empty.
  std::function<void(uint64_t done, uint64_t total)> progress;
  // Looked at after every few MiB, where not null: true ends the verification early, with a report
  // that is `unreadable`.
  const std::atomic<bool>* cancelled = nullptr;
};

// Never fails: what goes wrong is in the report, in the order of the manifest.
VerifyReport VerifyStep(const Folder& step, const VerifyOptions& options);
inline VerifyReport VerifyStep(const Folder& step, VerifyDepth depth) {
  return VerifyStep(step, VerifyOptions{depth, 1, {}, nullptr});
}

// OK, or DataLoss (Unavailable when `unreadable`) with the folder and the first few problems.
absl::Status VerifyStatus(const Folder& step, const VerifyReport& report);

}  // namespace moesaic
