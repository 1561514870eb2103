// ProgressView: what a person sees of a job while it runs. On a terminal, one line that is redrawn
// below the lines that stay; elsewhere plain lines, about one a second at most.
#pragma once

#include <optional>
#include <ostream>
#include <string>

#include "absl/time/time.h"
#include "base/clock.h"
#include "proto/coordinator.pb.h"

namespace moesaic {

// Thread-compatible. `out` and `clock` must outlive it.
class ProgressView {
 public:
  ProgressView(bool terminal, std::ostream& out, const Clock& clock)
      : terminal_(terminal), out_(out), clock_(clock) {}
  // Leaves the last step standing.
  ~ProgressView() { Finish(); }

  // The first and last steps, those with a validation loss, notes and changes of state always show.
  void Take(const JobEvent& event);
  // A line that stays.
  void Say(const std::string& text);
  void Finish();

 private:
  void TakeStep(const StepMetrics& step);
  void TakeStatus(const JobStatus& status);
  std::string StepLine(const StepMetrics& step) const;
  void Draw(const std::string& line, bool stays);

  const bool terminal_;
  std::ostream& out_;
  const Clock& clock_;
  JobStatus status_;
  std::optional<StepMetrics> hidden_;  // the newest step, while no line shows it
  std::string live_;                   // the line that is being redrawn
  double step_seconds_ = 0;            // smoothed
  bool any_step_ = false;
  absl::Time next_ = absl::InfinitePast();
};

// "1m05s", "2h03m": two parts at most.
std::string DurationForPeople(double seconds);
// "dense_to_sparse, temperature 1.42"; empty where the recipe has no phase.
std::string PhaseForPeople(const StepMetrics& step);

}  // namespace moesaic
