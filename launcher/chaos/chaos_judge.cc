#include "launcher/chaos/chaos_judge.h"

#include <fmt/format.h>

#include <algorithm>

namespace moesaic {

void ChaosJudge::Injected(const PlannedFault& fault, absl::Time now) {
  costs_.push_back({fault.text, step_, generation_, std::nullopt, std::nullopt, 0});
  if (fault.fault.kind() == Fault::CORRUPT) ++corrupted_;
  open_ = OpenFault{now, now + absl::Seconds(fault.fault.seconds())};
  // The death of ranks, or a hang without an end.
  open_->needs_generation =
      fault.fault.seconds() == 0 &&
      (fault.target.kind == ChaosTarget::kRank ||
       (fault.target.kind == ChaosTarget::kNode && nodes_.contains(fault.target.node)));
}

void ChaosJudge::Withdraw() {
  costs_.pop_back();
  open_.reset();
}

void ChaosJudge::Take(const JobEvent& event, absl::Time now) {
  if (event.has_status()) TakeStatus(event.status(), now);
  if (event.has_step()) TakeStep(event.step(), now);
}

void ChaosJudge::TakeStatus(const JobStatus& status, absl::Time now) {
  if (status.generation() < generation_) {
    violations_.push_back(fmt::format("M1: generation {} after generation {}", status.generation(),
                                      generation_));
  }
  if (status.committed_step() < committed_ && --corrupted_ < 0) {
    corrupted_ = 0;
    violations_.push_back(fmt::format("C1: the newest checkpoint is step {}, and was step {}",
                                      status.committed_step(), committed_));
  }
  generation_ = std::max(generation_, status.generation());
  committed_ = status.committed_step();
  ranks_ = status.ranks();
  nodes_.clear();
  for (const JobNode& node : status.nodes()) {
    if (!node.spare()) nodes_.insert(node.node());
  }
  if (open_ && !costs_.back().detected && status.state() != RUNNING) {
    costs_.back().detected = now - open_->injected;
  }
  if (status.state() >= SUCCEEDED) {
    ended_ = true;
    if (status.state() != SUCCEEDED) {
      violations_.push_back(fmt::format("the job is {}: {}", JobState_Name(status.state()),
                                        status.reason()));
    }
  }
}

void ChaosJudge::TakeStep(const StepMetrics& step, absl::Time now) {
  if (open_) {
    FaultCost& cost = costs_.back();
    const bool restarted = step.generation() > cost.generation;
    if (restarted || (!open_->needs_generation && now >= open_->over && step.step() > cost.step)) {
      cost.training_again = now - open_->injected;
      if (step.step() <= step_) cost.steps_lost = step_ - step.step() + 1;
      open_.reset();
    }
  }
  step_ = step.step();
}

void ChaosJudge::Tick(absl::Time now) {
  if (!open_ || now < open_->over + recover_within_) return;
  violations_.push_back(fmt::format("M3: no training within {} of {}",
                                    absl::FormatDuration(recover_within_), costs_.back().fault));
  open_.reset();
}

}  // namespace moesaic
