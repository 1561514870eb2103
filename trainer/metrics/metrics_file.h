// metrics.jsonl: one JSON object a step, appended by rank 0. A step done again after a failure is
// appended again; the last line of a step counts. docs/train.md has the keys.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/coordinator.pb.h"
#include "trainer/metrics/append_file.h"
#include "trainer/metrics/recipe_metrics.h"
#include "trainer/metrics/routing_metrics.h"
#include "trainer/metrics/validation_routing.h"

namespace moesaic {

// All that is written of a step.
struct StepRecord {
  StepMetrics step = {};
  RecipeMetrics recipe = {};
  RoutingMetrics routing = {};  // without layers for a model without experts
  bool loads = false;      // whether its loads are written
  std::optional<ValidationRouting> validation = {};  // of a step that ended with a validation
};

// Whether the loads of a step's experts are written: about a hundred times in a run, and at its
// end.
bool LoadsAreDue(uint64_t step, uint64_t steps);

// The line of a step, without the newline. A value that is not finite is written as null.
std::string MetricsLine(const StepRecord& record);

// Thread-compatible.
class MetricsFile {
 public:
  // Opens <run_dir>/metrics.jsonl for appending, making the folder; a last line torn by a crash is
  // ended first. Unavailable, naming the path.
  static absl::StatusOr<std::unique_ptr<MetricsFile>> Open(const std::string& run_dir);

  absl::Status Append(const StepRecord& record);

 private:
  explicit MetricsFile(AppendFile file) : file_(std::move(file)) {}
  AppendFile file_;
};

}  // namespace moesaic
