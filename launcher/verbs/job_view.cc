#include "launcher/verbs/job_view.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/foreign_text.h"
#include "launcher/run/progress_view.h"
#include "proto/field_text.h"
#include "scheduler/state/cluster_state.h"

namespace moesaic {
namespace {

template <typename Value>
Json OrNull(bool present, const Value& value) {
  return present ? Json(value) : Json();
}

// Of a recipe with phases; else null.
void AddPhase(const StepMetrics& step, Json& json) {
  const std::string phase = PhaseText(step.phase());
  json["phase"] = OrNull(!phase.empty(), phase);
  json["temperature"] = OrNull(step.has_temperature(), step.temperature());
}

Json NodesJson(const JobStatus& status) {
  Json nodes = Json::array();
  for (const JobNode& node : status.nodes()) {
    nodes.push_back({{"node", node.node()},
                     {"spare", node.spare()},
                     {"reason", OrNull(!node.reason().empty(), node.reason())}});
  }
  return nodes;
}

std::string NodesText(const JobStatus& status) {
  std::vector<std::string> active;
  std::vector<std::string> spare;
  for (const JobNode& node : status.nodes()) {
    if (node.spare()) {
      spare.push_back(fmt::format("{} ({})", node.node(), node.reason()));
    } else {
      active.push_back(node.node());
    }
  }
  std::string text = fmt::format("{} active", active.size());
  if (!active.empty()) text += fmt::format(" ({})", fmt::join(active, ", "));
  if (!spare.empty()) text += fmt::format("; {} spare: {}", spare.size(), fmt::join(spare, "; "));
  return text + fmt::format("; {} to {} wanted", status.min_nodes(), status.max_nodes());
}

std::string StepText(const JobStatus& status) {
  const StepMetrics& step = status.last_step();
  std::string text = fmt::format("{} of {}", step.step(), status.total_steps());
  if (step.step() > 0) text += fmt::format(", loss {:.4f}", step.loss());
  if (status.has_validation_loss()) {
    text += fmt::format(", validation loss {:.4f}", status.validation_loss());
  }
  if (!HasEnded(status.state()) && step.seconds() > 0) {
    const auto left = static_cast<double>(status.total_steps() - step.step());
    text += fmt::format(", {:.2f} steps/s, {:.0f} tokens/s, eta {}", 1 / step.seconds(),
                        step.tokens_per_second(), DurationForPeople(left * step.seconds()));
  }
  return text;
}

std::string SavedText(const JobStatus& status, absl::Time now) {
  if (status.committed_path().empty()) return "nothing yet";
  return fmt::format("step {}, {} ago, in {}", status.committed_step(),
                     AgeForPeople(status.committed_unix_ns(), now), status.committed_path());
}

std::string RestartsText(const JobStatus& status) {
  return fmt::format("{} ({} of at most {} recent failures), {} change{} of nodes",
                     status.restarts(), status.recent_failures(), status.max_failures(),
                     status.resizes(), status.resizes() == 1 ? "" : "s");
}

}  // namespace

Json StatusJson(const JobStatus& status, absl::Time now) {
  const StepMetrics& step = status.last_step();
  const bool stepped = step.step() > 0;
  const bool saved = !status.committed_path().empty();
  const int64_t committed = status.committed_unix_ns();
  Json json;
  json["job"] = status.job();
  json["state"] = JobState_Name(status.state());
  json["reason"] = status.reason();
  json["next"] = OrNull(!status.next().empty(), status.next());
  json["generation"] = status.generation();
  json["ranks"] = status.ranks();
  json["layout"] = status.layout();
  json["step"] = step.step();
  json["total_steps"] = status.total_steps();
  json["loss"] = OrNull(stepped, step.loss());
  json["validation_loss"] = OrNull(status.has_validation_loss(), status.validation_loss());
  json["step_seconds"] = OrNull(step.seconds() > 0, step.seconds());
  AddPhase(step, json);
  json["tokens"] = status.tokens();
  json["tokens_per_second"] = status.tokens_per_second();
  json["training_seconds"] = status.training_seconds();
  json["committed_step"] = OrNull(saved, status.committed_step());
  json["committed_path"] = OrNull(saved, status.committed_path());
  json["committed_age_seconds"] =
      OrNull(saved && committed != 0,
             absl::ToDoubleSeconds(now - absl::FromUnixNanos(committed)));
  json["memory_step"] = OrNull(status.memory_step() > 0, status.memory_step());
  json["nodes"] = NodesJson(status);
  json["min_nodes"] = status.min_nodes();
  json["max_nodes"] = status.max_nodes();
  json["restarts"] = status.restarts();
  json["recent_failures"] = status.recent_failures();
  json["max_failures"] = status.max_failures();
  json["resizes"] = status.resizes();
  json["last_failure"] = OrNull(!status.last_failure().empty(), status.last_failure());
  json["stragglers"] = Json(std::vector<std::string>(status.stragglers().begin(),
                                                     status.stragglers().end()));
  json["submitted"] = JsonTime(status.submitted_unix_ns());
  json["exit_code"] = OrNull(HasEnded(status.state()), status.exit_code());
  return json;
}

std::string StatusText(const JobStatus& status, absl::Time now) {
  std::string text = fmt::format("{}: {}: {}\n", status.job(), JobState_Name(status.state()),
                                 status.reason());
  const auto line = [&](const char* name, const std::string& value) {
    if (!value.empty()) text += fmt::format("  {:<11} {}\n", name, value);
  };
  line("next", status.next());
  line("step", StepText(status));
  line("phase", PhaseForPeople(status.last_step()));
  line("saved", SavedText(status, now));
  if (status.memory_step() > 0) line("in memory", fmt::format("step {}", status.memory_step()));
  if (status.generation() > 0) {
    line("layout", fmt::format("generation {}: {}", status.generation(), status.layout()));
  }
  line("nodes", NodesText(status));
  line("restarts", RestartsText(status));
  line("last failure", status.last_failure());
  for (const std::string& straggler : status.stragglers()) line("slow", straggler);
  if (status.security() == SECURITY_NONE) {
    line("security", "NONE: the coordinator takes plain text from anyone (--insecure)");
  }
  if (HasEnded(status.state())) line("exit code", std::to_string(status.exit_code()));
  return EscapeControls(text);
}

Json EventJson(const JobEvent& event) {
  Json json;
  json["sequence"] = event.sequence();
  json["time"] = JsonTime(event.unix_ns());
  if (event.has_step()) {
    const StepMetrics& step = event.step();
    json["kind"] = "step";
    json["generation"] = step.generation();
    json["step"] = step.step();
    json["loss"] = step.loss();
    json["validation_loss"] = OrNull(step.has_validation_loss(), step.validation_loss());
    json["seconds"] = step.seconds();
    json["tokens_per_second"] = step.tokens_per_second();
    json["skipped"] = step.skipped();
    AddPhase(step, json);
  } else if (event.has_status()) {
    json["kind"] = "state";
    json["state"] = JobState_Name(event.status().state());
    json["reason"] = event.status().reason();
    json["generation"] = event.status().generation();
  } else {
    json["kind"] = "note";
    json["text"] = event.note();
  }
  return json;
}

std::string EventText(const JobEvent& event) {
  std::string text = TimeForPeople(event.unix_ns()) + "  ";
  if (event.has_step()) {
    const StepMetrics& step = event.step();
    text += fmt::format("step {}  loss {:.4f}  {:.3f} s", step.step(), step.loss(), step.seconds());
    if (step.has_validation_loss()) text += fmt::format("  validation {:.4f}", step.validation_loss());
    if (step.skipped()) text += "  SKIPPED: not finite";
  } else if (event.has_status()) {
    text += fmt::format("{}: {}", JobState_Name(event.status().state()), event.status().reason());
  } else {
    text += event.note();
  }
  return EscapeControls(text);
}

bool ParseNodeRange(const std::string& text, uint32_t* min_nodes, uint32_t* max_nodes) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  return parts.size() <= 2 && absl::SimpleAtoi(parts.front(), min_nodes) &&
         absl::SimpleAtoi(parts.back(), max_nodes) && *min_nodes >= 1 && *min_nodes <= *max_nodes;
}

}  // namespace moesaic
