#include "launcher/report/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/foreign_text.h"

namespace moesaic {
namespace {

constexpr double kWidth = 560, kHeight = 240;
constexpr double kLeft = 56, kRight = 12, kTop = 28, kBottom = 24;
constexpr size_t kMostPoints = 500;
constexpr size_t kMostColumns = 512;

constexpr const char* kColours[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e",
                                    "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"};

// 1, 2 or 5 times a power of ten, so that a range has about `count` of it.
double TickUnit(double range, int count) {
  const double rough = range / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) return factor * power;
  }
  return 10 * power;
}

// The multiples of a round number within a range; foreign numbers may leave none.
template <typename Body>
void ForEachTick(double low, double high, int count, const Body& body) {
  const double unit = TickUnit(high - low, count);
  const double first = std::ceil(low / unit) * unit;
  for (int i = 0; i <= 2 * count && first + i * unit <= high; ++i) {
    const double tick = first + i * unit;
    body(std::abs(tick) < unit / 1e6 ? 0 : tick);
  }
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void Include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
  // A little more room, and some where there is none.
  void Widen(double share) {
    const double room = high > low ? share * (high - low) : std::max(1e-9, std::abs(high) * 0.1);
    low -= room;
    high += room;
  }
};

std::vector<SeriesPoint> Thinned(std::span<const SeriesPoint> points) {
  if (points.size() <= kMostPoints) return {points.begin(), points.end()};
  std::vector<SeriesPoint> thinned;
  for (size_t i = 0; i < kMostPoints; ++i) {
    const size_t begin = i * points.size() / kMostPoints;
    const size_t end = (i + 1) * points.size() / kMostPoints;
    double sum = 0;
    for (size_t k = begin; k < end; ++k) sum += points[k].value;
    thinned.push_back({points[end - 1].step, sum / static_cast<double>(end - begin)});
  }
  return thinned;
}

// Of a plot whose area is x over steps and y over values.
class Area {
 public:
  Area(const Range& x, const Range& y) : x_(x), y_(y) {}

  double X(double step) const {
    return kLeft + (step - x_.low) / (x_.high - x_.low) * (kWidth - kLeft - kRight);
  }
  double Y(double value) const {
    return kHeight - kBottom - (value - y_.low) / (y_.high - y_.low) * (kHeight - kTop - kBottom);
  }

  std::string Grid() const {
    std::string svg;
    ForEachTick(y_.low, y_.high, 5, [&](double tick) {
      svg += fmt::format(
          "<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
          "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
          kLeft, kWidth - kRight, Y(tick), Y(tick), kLeft - 5, Y(tick) + 4,
          NumberText(tick));
    });
    ForEachTick(x_.low, x_.high, 6, [&](double tick) {
      svg += fmt::format(
          "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
          X(tick), kHeight - 7, NumberText(tick));
    });
    return svg;
  }

  std::string Line(const PlotLine& line, std::span<const SeriesPoint> points) const {
    std::string at;
    for (const SeriesPoint& point : points) {
      at += fmt::format("{:.1f},{:.1f} ", X(static_cast<double>(point.step)), Y(point.value));
    }
    std::string svg = fmt::format("<polyline class=\"line\" stroke=\"{}\" points=\"{}\"><title>{}"
                                  "</title></polyline>",
                                  line.colour, at, EscapeHtml(line.name));
    if (points.size() <= 40) {
      for (const SeriesPoint& point : points) {
        svg += fmt::format("<circle r=\"2.5\" fill=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\"><title>{}: "
                           "step {}, {}</title></circle>",
                           line.colour, X(static_cast<double>(point.step)), Y(point.value),
                           EscapeHtml(line.name), point.step, NumberText(point.value));
      }
    }
    return svg;
  }

 private:
  const Range x_;
  const Range y_;
};

std::string Begin(absl::string_view title, double width, double height) {
  return fmt::format("<svg role=\"img\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
                     "height=\"{1:.0f}\"><text class=\"title\" x=\"{2:.0f}\" y=\"16\">{3}</text>",
                     width, height, kLeft, EscapeHtml(title));
}

// White at 0, dark blue at the mean and above, red from twice the mean on.
std::string HeatColour(double over_mean) {
  const double cold = std::clamp(over_mean, 0.0, 1.0), hot = std::clamp(over_mean - 1, 0.0, 1.0);
  const auto mix = [](double a, double b, double share) {
    return static_cast<int>(std::lround(a + (b - a) * share));
  };
  if (hot == 0) {
    return fmt::format("#{:02x}{:02x}{:02x}", mix(255, 107, cold), mix(255, 155, cold),
                       mix(255, 209, cold));
  }
  return fmt::format("#{:02x}{:02x}{:02x}", mix(107, 200, hot), mix(155, 20, hot),
                     mix(209, 20, hot));
}

double MeanOf(const std::vector<double>& values) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return sum > 0 ? sum / static_cast<double>(values.size()) : 1;
}

}  // namespace

std::string EscapeHtml(absl::string_view text) {
  return absl::StrReplaceAll(EscapeControls(text), {{"&", "&amp;"},
                                                    {"<", "&lt;"},
                                                    {">", "&gt;"},
                                                    {"\"", "&quot;"},
                                                    {"'", "&#39;"}});
}

std::string NumberText(double value) {
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T"};
  size_t unit = 0;
  if (std::abs(value) >= 1e4) {
    while (std::abs(value) >= 1000 && unit + 1 < std::size(kUnits)) {
      value /= 1000;
      ++unit;
    }
  }
  return fmt::format("{:.4g}{}", value, kUnits[unit]);
}

std::string LineColour(size_t run) { return kColours[run % std::size(kColours)]; }

std::string LinePlot(absl::string_view title, const std::vector<PlotLine>& lines) {
  Range x, y;
  std::vector<std::vector<SeriesPoint>> drawn;
  for (const PlotLine& line : lines) {
    for (const SeriesPoint& point : drawn.emplace_back(Thinned(line.points))) {
      x.Include(static_cast<double>(point.step));
      y.Include(point.value);
    }
  }
  if (x.empty()) return "";
  if (x.low == x.high) x.Widen(0);
  y.Widen(0.05);
  const Area area(x, y);
  std::string svg = Begin(title, kWidth, kHeight) + area.Grid();
  for (size_t i = 0; i < lines.size(); ++i) svg += area.Line(lines[i], drawn[i]);
  return svg + "</svg>\n";
}

std::string HeatMap(absl::string_view title, absl::string_view columns,
                    const std::vector<HeatRow>& rows) {
  size_t most = 0;
  for (const HeatRow& row : rows) most = std::max(most, std::min(row.values.size(), kMostColumns));
  if (most == 0) return "";
  const double cell = std::clamp((kWidth - kLeft - kRight) / static_cast<double>(most), 1.5, 28.0);
  const double height = std::min(cell, 18.0) < 10 ? 10 : std::min(cell, 18.0);
  const double width =
      std::max(kWidth, kLeft + kRight + cell * static_cast<double>(most));
  std::string svg =
      Begin(title, width, kTop + kBottom + height * static_cast<double>(rows.size()));
  double top = kTop;
  for (const HeatRow& row : rows) {
    const double mean = MeanOf(row.values);
    svg +=
        fmt::format("<text class=\"tick\" text-anchor=\"end\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
                    kLeft - 5, top + height - 2, EscapeHtml(row.name));
    for (size_t i = 0; i < std::min(row.values.size(), most); ++i) {
      svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
                         "fill=\"{}\"><title>{}, {}: {} ({:.2f} of the mean)</title></rect>",
                         kLeft + cell * static_cast<double>(i), top, cell, height,
                         HeatColour(row.values[i] / mean), EscapeHtml(row.name), i,
                         NumberText(row.values[i]), row.values[i] / mean);
    }
    top += height;
  }
  svg += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", kLeft, top + 15,
                     EscapeHtml(columns));
  return svg + "</svg>\n";
}

}  // namespace moesaic
