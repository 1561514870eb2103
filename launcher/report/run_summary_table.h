// A run in a few numbers.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "launcher/report/run_metrics.h"

namespace moesaic {

struct SummaryNumber {
  const char* key;      // in JSON
  const char* heading;  // of its column
  std::optional<double> value;
};

// loss, validation_loss and best_validation_loss are the newest and the lowest; tokens_per_second
// is of all steps together; what is of routing is the mean over the last tenth of the steps, and
// validation_max_vio and mutual_information (nats beyond shuffled tokens, the mean of pairs of
// layers) are of the newest validation.
std::vector<SummaryNumber> Summarise(const RunMetrics& run);

// An object a run: run, file, steps, generations, skipped and the numbers by key, null where there
// is none.
nlohmann::ordered_json SummaryJson(const RunMetrics& run);

// Cells as text, one list a run after the headings; columns that no run has are left out.
std::vector<std::vector<std::string>> SummaryCells(const std::vector<RunMetrics>& runs);

}  // namespace moesaic
