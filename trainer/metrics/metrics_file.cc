#include "trainer/metrics/metrics_file.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "proto/field_text.h"

namespace moesaic {
namespace {

using Json = nlohmann::ordered_json;

Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

template <typename List>
Json Numbers(const List& values) {
  Json list = Json::array();
  for (const double value : values) list.push_back(Number(value));
  return list;
}

void AddRecipe(const StepRecord& record, Json& line) {
  const StepMetrics& metrics = record.step;
  const RecipeMetrics& recipe = record.recipe;
  line["flops"] = Number(recipe.flops);
  if (const std::string phase = PhaseText(metrics.phase()); !phase.empty()) line["phase"] = phase;
  if (metrics.has_temperature()) line["temperature"] = Number(metrics.temperature());
  if (!recipe.expert_cosine.empty()) line["expert_cosine"] = Numbers(recipe.expert_cosine);
}

}  // namespace

bool LoadsAreDue(uint64_t step, uint64_t steps) {
  return step >= steps || step % std::max<uint64_t>(1, steps / 100) == 0;
}

std::string MetricsLine(const StepRecord& record) {
  const StepMetrics& metrics = record.step;
  Json line;
  line["step"] = metrics.step();
  line["generation"] = metrics.generation();
  line["loss"] = Number(metrics.loss());
  line["aux_loss"] = Number(metrics.aux_loss());
  line["grad_norm"] = Number(metrics.grad_norm());
  line["lr"] = Number(metrics.lr());
  line["tokens"] = metrics.tokens();
  line["seconds"] = Number(metrics.seconds());
  line["tokens_per_second"] = Number(metrics.tokens_per_second());
  line["expert_load_max_over_mean"] = Numbers(metrics.expert_load_max_over_mean());
  AddRecipe(record, line);
  if (metrics.has_validation_loss()) line["validation_loss"] = Number(metrics.validation_loss());
  if (metrics.has_snapshot_seconds()) line["snapshot_seconds"] = metrics.snapshot_seconds();
  if (metrics.skipped()) line["skipped"] = true;
  if (!record.routing.layers.empty()) line["routing"] = RoutingJson(record.routing, record.loads);
  if (record.validation.has_value() && !record.validation->routing.layers.empty()) {
    line["validation_routing"] = ValidationRoutingJson(*record.validation);
  }
  return line.dump();
}

absl::StatusOr<std::unique_ptr<MetricsFile>> MetricsFile::Open(const std::string& run_dir) {
  auto file = AppendFile::Open(run_dir, "metrics.jsonl");
  if (!file.ok()) return file.status();
  if (!file->EndsWithNewline()) {
    if (absl::Status status = file->Append("\n"); !status.ok()) return status;
  }
  return std::unique_ptr<MetricsFile>(new MetricsFile(*std::move(file)));
}

absl::Status MetricsFile::Append(const StepRecord& record) {
  return file_.Append(MetricsLine(record) + "\n");
}

}  // namespace moesaic
