// RunMetrics: what a run's metrics.jsonl says (docs/train.md), by series. The file may be of a run
// that is still going on, or of another version: lines and numbers that are not there are left out.
#pragma once

#include <cstdint>
#include <istream>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace moesaic {

// The series that are looked for, in the order in which they are shown.
struct SeriesKind {
  const char* key;
  const char* title;
};
std::span<const SeriesKind> SeriesKinds();

struct SeriesPoint {
  uint64_t step = 0;
  double value = 0;
};

// Of one step: layers by experts. Rows may differ in length.
struct LoadTable {
  uint64_t step = 0;
  std::vector<int> layers;
  std::vector<std::vector<double>> loads;
};

struct LayerPairNats {
  int first = 0;
  int second = 0;
  double nats = 0;
  double shuffled = 0;
};

struct RunMetrics {
  std::string name;  // to show
  std::string path;
  std::map<std::string, std::vector<SeriesPoint>> series;  // by key; steps ascend
  std::optional<LoadTable> loads;             // the newest of a step
  std::optional<LoadTable> validation_loads;  // the newest of a validation
  std::vector<LayerPairNats> mutual_information;  // of the newest validation
  uint64_t steps = 0;        // the newest
  uint64_t generations = 0;  // that wrote steps
  uint64_t skipped = 0;      // steps
  double tokens = 0;
  double seconds = 0;

  // Empty when the run has no such series.
  std::span<const SeriesPoint> Series(const std::string& key) const;
};

// From the lines of such a file. InvalidArgument: none is one of a step.
absl::StatusOr<RunMetrics> ParseRunMetrics(std::istream& in);

// `path`: a run.dir, or its metrics.jsonl. NotFound: there is none. InvalidArgument: no line of it
// is one of a step.
absl::StatusOr<RunMetrics> ReadRunMetrics(const std::string& path);

}  // namespace moesaic
