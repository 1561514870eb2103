// A page that compares runs: one HTML file with a table and drawings, without scripts or anything
// from elsewhere.
#pragma once

#include <string>
#include <vector>

#include "launcher/report/run_metrics.h"

namespace moesaic {

std::string ReportPage(const std::vector<RunMetrics>& runs);

}  // namespace moesaic
