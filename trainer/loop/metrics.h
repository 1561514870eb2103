// metrics.jsonl: one JSON object a step, appended by rank 0. A step done again after a failure is
// appended again; the last line of a step counts.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/coordinator.pb.h"

namespace moesaic {

// The line of a step, without the newline: step, generation, loss, aux_loss, grad_norm, lr, tokens,
// seconds, tokens_per_second, expert_load_max_over_mean; also validation_loss and skipped when they
// apply. A value that is not finite is written as null.
std::string MetricsLine(const StepMetrics& metrics);

// Thread-compatible.
class MetricsFile {
 public:
  // Opens <run_dir>/metrics.jsonl for appending, making the folder; a last line torn by a crash is
  // ended first. PermissionDenied or ResourceExhausted, naming the path.
  static absl::StatusOr<std::unique_ptr<MetricsFile>> Open(const std::string& run_dir);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  // One write call a line.
  absl::Status Append(const StepMetrics& metrics);

 private:
  MetricsFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

}  // namespace moesaic
