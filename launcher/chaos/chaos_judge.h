// ChaosJudge: watches a job's events while faults are injected; says what each fault cost, and
// whether a promise was broken:
//   - training goes on within `recover_within` of every fault (M3);
//   - generation numbers only grow (M1), and the committed step never goes back (C1);
//   - the job does not end but by success.
// Pure: time is passed in.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "launcher/chaos/chaos_schedule.h"
#include "proto/coordinator.pb.h"

namespace moesaic {

// What one fault did.
struct FaultCost {
  std::string fault;
  uint64_t step = 0;        // done when it was injected
  uint64_t generation = 0;  // that it hit
  std::optional<absl::Duration> detected;        // the job left RUNNING; none: it never did
  std::optional<absl::Duration> training_again;  // the first step after it
  uint64_t steps_lost = 0;                       // that had to be done again
};

class ChaosJudge {
 public:
  explicit ChaosJudge(absl::Duration recover_within) : recover_within_(recover_within) {}

  // A node as target has its name.
  void Injected(const PlannedFault& fault, absl::Time now);
  // The newest fault did not take place after all.
  void Withdraw();
  void Take(const JobEvent& event, absl::Time now);
  // Notices faults that were not recovered from in time.
  void Tick(absl::Time now);

  // The newest step that was reported done.
  uint64_t step() const { return step_; }
  uint32_t ranks() const { return ranks_; }
  bool ended() const { return ended_; }
  // Whether the effects of all faults so far are over.
  bool calm() const { return !open_; }
  const std::vector<FaultCost>& costs() const { return costs_; }
  const std::vector<std::string>& violations() const { return violations_; }

 private:
  // The newest fault, while it is not known to be over.
  struct OpenFault {
    absl::Time injected;
    absl::Time over;  // of one that lasts; the others are over at once
    bool needs_generation = false;  // only a new generation is a recovery
  };

  void TakeStatus(const JobStatus& status, absl::Time now);
  void TakeStep(const StepMetrics& step, absl::Time now);

  const absl::Duration recover_within_;
  uint64_t step_ = 0;
  uint64_t generation_ = 0;
  uint64_t committed_ = 0;
  int corrupted_ = 0;  // checkpoints that were broken and may still be missed
  uint32_t ranks_ = 0;
  std::set<std::string> nodes_;  // that the job computes on
  bool ended_ = false;
  std::optional<OpenFault> open_;
  std::vector<FaultCost> costs_;
  std::vector<std::string> violations_;
};

}  // namespace moesaic
