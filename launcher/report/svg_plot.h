// Drawings as inline SVG text: lines over steps, and heat maps. Texts are escaped.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "launcher/report/run_metrics.h"

namespace moesaic {

// For HTML and SVG, in text and in quoted attributes; control characters as in EscapeControls.
std::string EscapeHtml(absl::string_view text);

// A number for people: four significant digits, and k, M, G, T from ten thousand on.
std::string NumberText(double value);

// The colour of the run with that number, as #rrggbb.
std::string LineColour(size_t run);

struct PlotLine {
  std::string name;
  std::string colour;
  std::span<const SeriesPoint> points;
};

// Long series are drawn as means of neighbouring steps. Without points: "".
std::string LinePlot(absl::string_view title, const std::vector<PlotLine>& lines);

// Each row's cells over the row's mean: white at 0, darker the higher, red from twice the mean on.
struct HeatRow {
  std::string name;
  std::vector<double> values;
};
std::string HeatMap(absl::string_view title, absl::string_view columns,
                    const std::vector<HeatRow>& rows);

}  // namespace moesaic
