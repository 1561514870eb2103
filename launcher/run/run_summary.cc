#include "launcher/run/run_summary.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/exit_codes.h"

namespace moesaic {

std::string SummaryJson(const JobStatus& status) {
  nlohmann::ordered_json json;
  const bool stepped = status.last_step().step() > 0;
  json["job"] = status.job();
  json["state"] = JobState_Name(status.state());
  json["generation"] = status.generation();
  json["step"] = status.last_step().step();
  json["loss"] = stepped ? nlohmann::ordered_json(status.last_step().loss()) : nullptr;
  json["validation_loss"] = nullptr;
  json["perplexity"] = nullptr;
  if (status.has_validation_loss()) {
    json["validation_loss"] = status.validation_loss();
    json["perplexity"] = std::exp(status.validation_loss());
  }
  json["tokens"] = status.tokens();
  json["seconds"] = status.training_seconds();
  json["tokens_per_second"] = status.tokens_per_second();
  json["checkpoint"] = status.committed_path().empty()
                           ? nlohmann::ordered_json()
                           : nlohmann::ordered_json(status.committed_path());
  json["restarts"] = status.restarts();
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string SummaryText(const JobStatus& status) {
  std::string text =
      fmt::format("{} {}: {}", status.job(), JobState_Name(status.state()), status.reason());
  if (status.last_step().step() > 0) {
    text += fmt::format("\n  step {} of {}, loss {:.4f}", status.last_step().step(),
                        status.total_steps(), status.last_step().loss());
  }
  if (status.has_validation_loss()) {
    text += fmt::format(", validation loss {:.4f} (perplexity {:.2f})", status.validation_loss(),
                        std::exp(status.validation_loss()));
  }
  if (status.training_seconds() > 0) {
    text += fmt::format("\n  {:.1f} s of training, {:.0f} tokens/s, {} restart{}",
                        status.training_seconds(), status.tokens_per_second(), status.restarts(),
                        status.restarts() == 1 ? "" : "s");
  }
  if (!status.committed_path().empty()) text += "\n  checkpoint: " + status.committed_path();
  return text;
}

int RunExitCode(const JobStatus& status, int signal, bool killed) {
  if (status.state() != CANCELLED || signal == 0) return status.exit_code();
  const bool saved = status.committed_step() >= status.last_step().step();
  if (!saved && !killed) return kExitJobFailed;
  return signal == 2 ? kExitInterrupted : kExitTerminated;
}

}  // namespace moesaic
