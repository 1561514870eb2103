#include "launcher/run/progress_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/foreign_text.h"
#include "proto/field_text.h"

namespace moesaic {
namespace {

constexpr absl::Duration kRedraw = absl::Milliseconds(100);
constexpr absl::Duration kLineEvery = absl::Seconds(1);
constexpr double kSmoothing = 0.1;

std::string RateForPeople(double per_second) {
  if (per_second >= 1e6) return fmt::format("{:.2f}M", per_second / 1e6);
  if (per_second >= 1e4) return fmt::format("{:.1f}k", per_second / 1e3);
  return fmt::format("{:.0f}", per_second);
}

}  // namespace

std::string DurationForPeople(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto whole = static_cast<int64_t>(std::min(seconds, 1e12) + 0.5);
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  return fmt::format("{}d{:02}h", whole / 86400, whole / 3600 % 24);
}

std::string PhaseForPeople(const StepMetrics& step) {
  std::string text = PhaseText(step.phase());
  if (step.has_temperature()) text += fmt::format(", temperature {:.2f}", step.temperature());
  return text;
}

void ProgressView::Take(const JobEvent& event) {
  if (event.has_step()) {
    TakeStep(event.step());
  } else if (event.has_status()) {
    TakeStatus(event.status());
  } else {
    Say(event.note());
  }
}

void ProgressView::TakeStep(const StepMetrics& step) {
  step_seconds_ =
      any_step_ ? step_seconds_ + kSmoothing * (step.seconds() - step_seconds_) : step.seconds();
  const absl::Time now = clock_.Now();
  const bool always = !any_step_ || step.step() == status_.total_steps() ||
                      step.has_validation_loss() || step.skipped();
  any_step_ = true;
  hidden_ = step;
  if (!always && now < next_) return;
  next_ = now + (terminal_ ? kRedraw : kLineEvery);
  Draw(StepLine(step), step.has_validation_loss() || step.skipped());
  hidden_.reset();
}

void ProgressView::TakeStatus(const JobStatus& status) {
  const bool news = status.state() != status_.state() || status.reason() != status_.reason();
  status_ = status;
  if (!news || status.state() == QUEUED || status.state() == PLANNING) return;
  if (status.state() == RUNNING) {
    Say(fmt::format("generation {} is running: {}", status.generation(), status.layout()));
  } else {
    std::string state = JobState_Name(status.state());
    std::transform(state.begin(), state.end(), state.begin(), ::tolower);
    Say(fmt::format("{}: {}", state, status.reason()));
  }
}

std::string ProgressView::StepLine(const StepMetrics& step) const {
  std::string line =
      fmt::format("step {}/{}  loss {:.4f}", step.step(), status_.total_steps(), step.loss());
  if (step.has_validation_loss())
    line += fmt::format("  validation {:.4f}", step.validation_loss());
  line += fmt::format("  {} tokens/s", RateForPeople(step.tokens_per_second()));
  if (step.step() < status_.total_steps()) {
    const double left = static_cast<double>(status_.total_steps() - step.step());
    line += fmt::format("  eta {}", DurationForPeople(left * step_seconds_));
  }
  double balance = 0;
  for (const double load : step.expert_load_max_over_mean()) balance = std::max(balance, load);
  if (balance > 0) line += fmt::format("  expert load max/mean {:.2f}", balance);
  const std::string phase = PhaseForPeople(step);
  if (!phase.empty()) line += "  phase " + phase;
  line += fmt::format("  generation {}", step.generation());
  if (status_.committed_step() > 0) line += fmt::format("  saved {}", status_.committed_step());
  if (step.skipped()) line += "  SKIPPED: not finite";
  return line;
}

void ProgressView::Say(const std::string& text) {
  const std::string live = live_;
  Draw(text, true);
  if (terminal_ && !live.empty()) Draw(live, false);
}

void ProgressView::Finish() {
  if (hidden_) Draw(StepLine(*hidden_), true);
  hidden_.reset();
  if (terminal_ && !live_.empty()) out_ << '\n' << std::flush;
  live_.clear();
}

void ProgressView::Draw(const std::string& text, bool stays) {
  const std::string line = EscapeControls(text);  // reasons and notes come from other hosts
  if (!terminal_) {
    out_ << line << '\n' << std::flush;
    return;
  }
  out_ << "\r\033[K" << line;
  if (stays) out_ << '\n';
  out_ << std::flush;
  live_ = stays ? "" : line;
}

}  // namespace moesaic
