#include "launcher/report/report_page.h"

#include <fmt/format.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "launcher/report/run_summary_table.h"
#include "launcher/report/svg_plot.h"

namespace moesaic {
namespace {

// Nothing is loaded from anywhere, even if a text got past the escaping.
constexpr const char* kHead = R"(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Moesaic report</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; color: #222; margin: 1.5em auto; max-width: 1180px; }
h1 { font-size: 1.3em; } h2 { font-size: 1.1em; margin-top: 1.5em; }
table { border-collapse: collapse; } td, th { padding: 0.15em 0.7em; text-align: right; }
th { border-bottom: 1px solid #999; font-weight: 600; font-size: 0.8em; }
td:first-child, th:first-child { text-align: left; }
svg { margin: 0.4em 0.8em 0.4em 0; } .line { fill: none; stroke-width: 1.5; }
.grid { stroke: #e4e4e4; } .tick { font-size: 10px; fill: #666; }
.title { font-size: 13px; font-weight: 600; }
.key { display: inline-block; width: 1.6em; height: 0.25em; }
.key { vertical-align: middle; margin-right: 0.5em; }
</style>
</head>
<body>
<h1>Moesaic report</h1>
)";

std::string SummaryTable(const std::vector<RunMetrics>& runs) {
  std::string html = "<table>\n";
  const auto cells = SummaryCells(runs);
  for (size_t row = 0; row < cells.size(); ++row) {
    html += "<tr>";
    for (size_t column = 0; column < cells[row].size(); ++column) {
      const std::string text = EscapeHtml(cells[row][column]);
      if (row == 0) {
        html += absl::StrCat("<th>", text, "</th>");
      } else if (column == 0) {
        html += fmt::format("<td><span class=\"key\" style=\"background:{}\"></span>{}</td>",
                            LineColour(row - 1), text);
      } else {
        html += absl::StrCat("<td>", text, "</td>");
      }
    }
    html += "</tr>\n";
  }
  return html + "</table>\n";
}

// Nothing is said by a series that is 0 in all runs.
bool IsWorthDrawing(const std::vector<RunMetrics>& runs, const char* key) {
  return std::ranges::any_of(runs, [key](const RunMetrics& run) {
    return std::ranges::any_of(run.Series(key),
                               [](const SeriesPoint& point) { return point.value != 0; });
  });
}

std::string Plots(const std::vector<RunMetrics>& runs) {
  std::string html = "<h2>Over steps</h2>\n";
  for (const SeriesKind& kind : SeriesKinds()) {
    if (!IsWorthDrawing(runs, kind.key)) continue;
    std::vector<PlotLine> lines;
    for (size_t i = 0; i < runs.size(); ++i) {
      lines.push_back({runs[i].name, LineColour(i), runs[i].Series(kind.key)});
    }
    html += LinePlot(kind.title, lines);
  }
  return html;
}

std::string Loads(const std::string& what, const std::optional<LoadTable>& table) {
  if (!table.has_value()) return "";
  std::vector<HeatRow> rows;
  for (size_t i = 0; i < table->loads.size(); ++i) {
    rows.push_back({absl::StrCat("layer ", table->layers[i]), table->loads[i]});
  }
  return HeatMap(
      absl::StrCat("Load of each expert over its layer's mean, ", what, " ", table->step),
      "experts of the layer's pool", rows);
}

// Layers by layers, of what one says about the other beyond shuffled tokens.
std::string Information(const std::vector<LayerPairNats>& pairs) {
  std::vector<int> layers;
  for (const LayerPairNats& pair : pairs) {
    layers.push_back(pair.first);
    layers.push_back(pair.second);
  }
  std::ranges::sort(layers);
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  if (layers.empty()) return "";
  std::string html =
      "<p>Mutual information of the best experts of two layers, in nats beyond shuffled tokens:"
      "</p>\n<table>\n<tr><th></th>";
  for (const int layer : layers) html += fmt::format("<th>{}</th>", layer);
  html += "</tr>\n";
  for (const int row : layers) {
    html += fmt::format("<tr><td>layer {}</td>", row);
    for (const int column : layers) {
      const auto pair = std::ranges::find_if(pairs, [&](const LayerPairNats& one) {
        return one.first == row && one.second == column;
      });
      html += pair == pairs.end() ? "<td></td>"
                                  : fmt::format("<td>{:.4f}</td>", pair->nats - pair->shuffled);
    }
    html += "</tr>\n";
  }
  return html + "</table>\n";
}

}  // namespace

std::string ReportPage(const std::vector<RunMetrics>& runs) {
  std::string html = kHead + SummaryTable(runs) + Plots(runs);
  for (const RunMetrics& run : runs) {
    const std::string drawn = Loads("validation after step", run.validation_loads) +
                              Loads("step", run.loads) + Information(run.mutual_information);
    if (!drawn.empty()) html += absl::StrCat("<h2>", EscapeHtml(run.name), "</h2>\n", drawn);
  }
  return html + "</body>\n</html>\n";
}

}  // namespace moesaic
