#include "launcher/report/run_metrics.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"

namespace moesaic {
namespace {

using Json = nlohmann::json;

// Beyond these nothing is drawn.
constexpr size_t kMostLayers = 1024;
constexpr size_t kMostExperts = 65536;

constexpr SeriesKind kKinds[] = {
    {"loss", "Training loss (nats)"},
    {"validation_loss", "Validation loss (nats)"},
    {"aux_loss", "Auxiliary loss"},
    {"tokens_per_second", "Tokens a second"},
    {"max_vio", "MaxVio of a batch, mean of layers"},
    {"validation_max_vio", "MaxVio of a validation pass, mean of layers"},
    {"entropy", "Entropy of the gate (nats), mean of layers"},
    {"active", "Active experts a token, mean of layers"},
    {"most_active", "Active experts of the token with the most"},
    {"null", "Null experts among what was chosen"},
    {"dropped", "Dropped pairs"},
    {"candidates", "Experts that can be chosen, mean of layers"},
    {"wire_bytes", "Bytes of tokens on the wire a step"},
    {"grad_norm", "Gradient norm"},
    {"lr", "Learning rate"},
};

std::optional<double> NumberAt(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  const double value = found->get<double>();
  return std::isfinite(value) ? std::optional(value) : std::nullopt;
}

std::vector<double> NumbersAt(const Json& object, const char* key) {
  std::vector<double> values;
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) return values;
  for (const Json& value : *found) values.push_back(value.is_number() ? value.get<double>() : 0);
  return values;
}

int LayerNumber(double value) { return static_cast<int>(std::clamp(value, 0.0, 1e6)); }

std::optional<double> MeanAt(const Json& object, const char* key) {
  const std::vector<double> values = NumbersAt(object, key);
  if (values.empty()) return std::nullopt;
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

std::optional<double> MostAt(const Json& object, const char* key) {
  const std::vector<double> values = NumbersAt(object, key);
  if (values.empty()) return std::nullopt;
  return *std::ranges::max_element(values);
}

std::optional<LoadTable> LoadsOf(uint64_t step, const Json& routing) {
  const auto found = routing.find("loads");
  if (found == routing.end() || !found->is_array() || found->size() > kMostLayers) {
    return std::nullopt;
  }
  LoadTable table = {.step = step, .layers = {}, .loads = {}};
  const std::vector<double> layers = NumbersAt(routing, "layers");
  for (size_t i = 0; i < found->size(); ++i) {
    const Json& row = (*found)[i];
    if (!row.is_array() || row.size() > kMostExperts || row.empty()) return std::nullopt;
    table.layers.push_back(LayerNumber(i < layers.size() ? layers[i] : static_cast<double>(i)));
    std::vector<double>& loads = table.loads.emplace_back();
    for (const Json& load : row) {
      loads.push_back(load.is_number() ? std::max(0.0, load.get<double>()) : 0);
    }
  }
  if (table.loads.empty()) return std::nullopt;
  return table;
}

std::vector<LayerPairNats> PairsOf(const Json& routing) {
  std::vector<LayerPairNats> pairs;
  const auto found = routing.find("mutual_information");
  if (found == routing.end() || !found->is_array()) return pairs;
  for (const Json& pair : *found) {
    if (!pair.is_object()) continue;
    const std::vector<double> layers = NumbersAt(pair, "layers");
    const auto nats = NumberAt(pair, "nats"), shuffled = NumberAt(pair, "shuffled");
    if (layers.size() != 2 || !nats || !shuffled) continue;
    pairs.push_back({LayerNumber(layers[0]), LayerNumber(layers[1]), *nats, *shuffled});
  }
  return pairs;
}

class Collector {
 public:
  explicit Collector(RunMetrics* run) : run_(*run) {}

  // `line` is the last one of its step.
  void Take(uint64_t step, const Json& line) {
    run_.steps = step;
    if (const auto generation = NumberAt(line, "generation")) generations_.insert(*generation);
    run_.generations = generations_.size();
    run_.skipped += line.value("skipped", Json(false)) == Json(true);
    run_.tokens += NumberAt(line, "tokens").value_or(0);
    run_.seconds += NumberAt(line, "seconds").value_or(0);
    for (const char* key : {"loss", "validation_loss", "aux_loss", "tokens_per_second",
                            "grad_norm", "lr"}) {
      Add(key, step, NumberAt(line, key));
    }
    if (const auto routing = line.find("routing"); routing != line.end() && routing->is_object()) {
      TakeRouting(step, *routing);
    }
    if (const auto routing = line.find("validation_routing");
        routing != line.end() && routing->is_object()) {
      Add("validation_max_vio", step, MeanAt(*routing, "max_vio"));
      if (auto loads = LoadsOf(step, *routing)) run_.validation_loads = std::move(loads);
      run_.mutual_information = PairsOf(*routing);
    }
  }

 private:
  void TakeRouting(uint64_t step, const Json& routing) {
    for (const char* key : {"max_vio", "entropy", "active", "null", "dropped", "candidates"}) {
      Add(key, step, MeanAt(routing, key));
    }
    Add("most_active", step, MostAt(routing, "most_active"));
    Add("wire_bytes", step, NumberAt(routing, "wire_bytes"));
    if (auto loads = LoadsOf(step, routing)) run_.loads = std::move(loads);
  }

  void Add(const char* key, uint64_t step, std::optional<double> value) {
    if (value && std::isfinite(*value)) run_.series[key].push_back({step, *value});
  }

  RunMetrics& run_;
  std::set<double> generations_;
};

std::string FileOf(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored) ? path + "/metrics.jsonl" : path;
}

// By step; of a step that was done again the last line counts.
std::map<uint64_t, std::string> LastLines(std::istream& in) {
  std::map<uint64_t, std::string> lines;
  for (std::string line; std::getline(in, line);) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    const auto step = json.find("step");
    if (step == json.end() || !step->is_number_unsigned()) continue;
    lines[step->get<uint64_t>()] = std::move(line);
  }
  return lines;
}

}  // namespace

std::span<const SeriesKind> SeriesKinds() { return kKinds; }

std::span<const SeriesPoint> RunMetrics::Series(const std::string& key) const {
  const auto found = series.find(key);
  return found == series.end() ? std::span<const SeriesPoint>() : found->second;
}

absl::StatusOr<RunMetrics> ParseRunMetrics(std::istream& in) {
  const std::map<uint64_t, std::string> lines = LastLines(in);
  if (lines.empty()) {
    return absl::InvalidArgumentError("no line is one of a step: is it a run's metrics.jsonl?");
  }
  RunMetrics run;
  Collector collector(&run);
  for (const auto& [step, line] : lines) collector.Take(step, Json::parse(line));
  return run;
}

absl::StatusOr<RunMetrics> ReadRunMetrics(const std::string& path) {
  const std::string file = FileOf(path);
  std::ifstream in(file);
  if (!in) {
    return absl::NotFoundError(absl::StrCat(
        "[report] cannot read ", file, ": give the run.dir of a job that has done a step"));
  }
  auto run = ParseRunMetrics(in);
  if (!run.ok()) {
    return absl::Status(run.status().code(),
                        absl::StrCat("[report] ", file, ": ", run.status().message()));
  }
  run->name = path;
  run->path = file;
  return run;
}

}  // namespace moesaic
