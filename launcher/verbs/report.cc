#include "launcher/verbs/report.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launcher/report/report_page.h"
#include "launcher/report/run_summary_table.h"
#include "launcher/verbs/listing.h"

namespace moesaic {
namespace {

struct ReportFlags {
  std::vector<std::string> runs;
  std::string html;
  std::string output;
};

// The last part of each path where these differ, else the paths.
void NameRuns(std::vector<RunMetrics>& runs) {
  std::vector<std::string> names;
  for (const RunMetrics& run : runs) {
    std::filesystem::path path(run.name);
    if (!path.has_filename()) path = path.parent_path();  // "runs/a/"
    if (path.filename() == "metrics.jsonl") path = path.parent_path();
    names.push_back(path.filename());
  }
  const std::set<std::string> different(names.begin(), names.end());
  if (different.size() < names.size() || different.contains("")) return;
  for (size_t i = 0; i < runs.size(); ++i) runs[i].name = names[i];
}

absl::Status WritePage(const std::string& path, const std::string& page) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << page << std::flush;
  if (out) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("[report] cannot write ", path));
}

void Report(const ReportFlags& flags, VerbContext& context) {
  std::vector<RunMetrics> runs;
  for (const std::string& path : flags.runs) {
    auto run = ReadRunMetrics(path);
    if (!run.ok()) return Fail(run.status(), context);
    runs.push_back(*std::move(run));
  }
  NameRuns(runs);
  if (!flags.html.empty()) {
    if (absl::Status status = WritePage(flags.html, ReportPage(runs)); !status.ok()) {
      return Fail(status, context);
    }
    context.err << absl::StrCat("the report is in ", flags.html, "\n");
  }
  if (flags.output == "json") {
    Json list = Json::array();
    for (const RunMetrics& run : runs) list.push_back(SummaryJson(run));
    context.out << JsonLine(list) << '\n';
    return;
  }
  auto cells = SummaryCells(runs);
  Table table(cells.front());
  for (size_t i = 1; i < cells.size(); ++i) table.Add(cells[i]);
  table.Print(context.out);
}

}  // namespace

void RegisterReport(CLI::App& program, VerbContext& context) {
  auto flags = std::make_shared<ReportFlags>();
  CLI::App* verb = program.add_subcommand("report", "what runs came to, in numbers and plots");
  verb->add_option("RUN", flags->runs, "Run folders (run.dir), or metrics.jsonl files")->required();
  verb->add_option("--html", flags->html, "Also write a page with plots here");
  AddOutputFormat(verb, &flags->output);
  verb->footer(
      "The page is one file that loads nothing from elsewhere.\n\n"
      "  moesaic report runs/a runs/b --html report.html");
  verb->callback([flags, &context] { Report(*flags, context); });
}

}  // namespace moesaic
