// Metrics of any bytes are refused or become a whole page and a summary; nothing of theirs is
// markup.
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>

#include "launcher/report/report_page.h"
#include "launcher/report/run_summary_table.h"

namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::istringstream in(std::string(reinterpret_cast<const char*>(data), size));
  auto run = moesaic::ParseRunMetrics(in);
  if (!run.ok()) {
    Require(!run.status().message().empty());
    return 0;
  }
  Require(moesaic::SummaryJson(*run)["steps"] == run->steps);
  const std::string page = moesaic::ReportPage({*run, *run});
  Require(page.ends_with("</html>\n"));
  Require(page.find("<script") == std::string::npos);
  return 0;
}
