#include "launcher/report/run_summary_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "launcher/report/svg_plot.h"

namespace moesaic {
namespace {

using Json = nlohmann::ordered_json;

std::optional<double> Last(std::span<const SeriesPoint> points) {
  return points.empty() ? std::nullopt : std::optional(points.back().value);
}

std::optional<double> Lowest(std::span<const SeriesPoint> points) {
  if (points.empty()) return std::nullopt;
  return std::ranges::min_element(points, {}, &SeriesPoint::value)->value;
}

// Over the last tenth of the points.
std::optional<double> Late(std::span<const SeriesPoint> points) {
  if (points.empty()) return std::nullopt;
  const auto last = points.last(std::max<size_t>(1, points.size() / 10));
  double sum = 0;
  for (const SeriesPoint& point : last) sum += point.value;
  return sum / static_cast<double>(last.size());
}

std::optional<double> MeanInformation(const std::vector<LayerPairNats>& pairs) {
  if (pairs.empty()) return std::nullopt;
  double sum = 0;
  for (const LayerPairNats& pair : pairs) sum += pair.nats - pair.shuffled;
  return sum / static_cast<double>(pairs.size());
}

}  // namespace

std::vector<SummaryNumber> Summarise(const RunMetrics& run) {
  std::optional<double> speed;
  if (run.seconds > 0) speed = run.tokens / run.seconds;
  return {
      {"loss", "LOSS", Last(run.Series("loss"))},
      {"validation_loss", "VALIDATION", Last(run.Series("validation_loss"))},
      {"best_validation_loss", "BEST", Lowest(run.Series("validation_loss"))},
      {"tokens_per_second", "TOKENS/S", speed},
      {"max_vio", "MAXVIO", Late(run.Series("max_vio"))},
      {"validation_max_vio", "MAXVIO (VALIDATION)", Last(run.Series("validation_max_vio"))},
      {"entropy", "ENTROPY", Late(run.Series("entropy"))},
      {"active", "ACTIVE", Late(run.Series("active"))},
      {"null", "NULL", Late(run.Series("null"))},
      {"dropped", "DROPPED", Late(run.Series("dropped"))},
      {"candidates", "CANDIDATES", Late(run.Series("candidates"))},
      {"wire_bytes", "WIRE BYTES", Late(run.Series("wire_bytes"))},
      {"mutual_information", "MI (NATS)", MeanInformation(run.mutual_information)},
  };
}

Json SummaryJson(const RunMetrics& run) {
  Json json = {{"run", run.name},
               {"file", run.path},
               {"steps", run.steps},
               {"generations", run.generations},
               {"skipped", run.skipped}};
  for (const SummaryNumber& number : Summarise(run)) {
    json[number.key] = number.value ? Json(*number.value) : Json();
  }
  return json;
}

std::vector<std::vector<std::string>> SummaryCells(const std::vector<RunMetrics>& runs) {
  std::vector<std::vector<SummaryNumber>> numbers;
  for (const RunMetrics& run : runs) numbers.push_back(Summarise(run));
  std::vector<std::vector<std::string>> cells = {{"RUN", "STEPS"}};
  for (const RunMetrics& run : runs) cells.push_back({run.name, fmt::format("{}", run.steps)});
  for (size_t column = 0; column < numbers.front().size(); ++column) {
    const auto known = [&](const auto& row) { return row[column].value.has_value(); };
    if (std::ranges::none_of(numbers, known)) continue;
    cells[0].push_back(numbers[0][column].heading);
    for (size_t run = 0; run < runs.size(); ++run) {
      const std::optional<double> value = numbers[run][column].value;
      cells[run + 1].push_back(value ? NumberText(*value) : "-");
    }
  }
  return cells;
}

}  // namespace moesaic
