#include "trainer/metrics/routing_metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moesaic {
namespace {

using Json = nlohmann::ordered_json;

// Five digits are enough to read and to draw.
double Rounded(double value) {
  if (value == 0 || !std::isfinite(value)) return value;
  const double unit = std::pow(10.0, 4 - std::floor(std::log10(std::abs(value))));
  return std::round(value * unit) / unit;
}

}  // namespace

double MaxVio(std::span<const double> loads) {
  const double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
  if (sum <= 0) return 0;
  return *std::ranges::max_element(loads) * static_cast<double>(loads.size()) / sum - 1;
}

void Add(LayerRoutingMetrics layer, const LayerRouting& counts, RoutingMetrics& metrics) {
  double tokens = 0;
  for (size_t active = 0; active < counts.fan_out.size(); ++active) {
    tokens += static_cast<double>(counts.fan_out[active]);
    if (counts.fan_out[active] > 0) layer.most_active = static_cast<int64_t>(active);
  }
  const int64_t chosen = std::accumulate(counts.counts.begin(), counts.counts.end(), int64_t{0});
  const auto pairs = static_cast<double>(chosen);
  layer.loads.assign(counts.counts.begin(), counts.counts.end());
  layer.max_vio = MaxVio(layer.loads);
  if (tokens > 0) {
    layer.entropy = static_cast<double>(counts.entropy) / kEntropyUnit / tokens;
    layer.active = pairs / tokens;
  }
  if (chosen > 0) layer.dropped = static_cast<double>(counts.dropped) / pairs;
  if (chosen + counts.nulls > 0) {
    layer.null = static_cast<double>(counts.nulls) / static_cast<double>(chosen + counts.nulls);
  }
  metrics.rows += chosen - counts.dropped;
  metrics.wire_rows += counts.wire_rows;
  metrics.layers.push_back(std::move(layer));
}

double MeanOfLayers(const RoutingMetrics& metrics, double LayerRoutingMetrics::*field) {
  double sum = 0;
  for (const LayerRoutingMetrics& layer : metrics.layers) sum += layer.*field;
  return metrics.layers.empty() ? 0 : sum / static_cast<double>(metrics.layers.size());
}

Json RoutingJson(const RoutingMetrics& metrics, bool loads) {
  Json json;
  const auto list = [&](const char* name, const auto& value_of) {
    Json values = Json::array();
    for (const LayerRoutingMetrics& layer : metrics.layers) values.push_back(value_of(layer));
    json[name] = std::move(values);
  };
  using Layer = LayerRoutingMetrics;
  list("layers", [](const Layer& layer) { return layer.layer; });
  list("max_vio", [](const Layer& layer) { return Rounded(layer.max_vio); });
  list("entropy", [](const Layer& layer) { return Rounded(layer.entropy); });
  list("active", [](const Layer& layer) { return Rounded(layer.active); });
  list("most_active", [](const Layer& layer) { return layer.most_active; });
  list("dropped", [](const Layer& layer) { return Rounded(layer.dropped); });
  list("null", [](const Layer& layer) { return Rounded(layer.null); });
  list("candidates", [](const Layer& layer) { return layer.candidates; });
  if (loads) {
    list("loads", [](const Layer& layer) {
      return std::vector<int64_t>(layer.loads.begin(), layer.loads.end());
    });
  }
  json["rows"] = metrics.rows;
  json["wire_rows"] = metrics.wire_rows;
  json["wire_bytes"] = metrics.wire_bytes;
  return json;
}

}  // namespace moesaic
