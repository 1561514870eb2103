// When a running job stops at a step to go on with its experts on other ranks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace moesaic {

struct RebalanceRules {
  double ratio = 0;  // elastic.rebalance_ratio; 0: never
  absl::Duration after = absl::Seconds(60);
};

// What is known when a newer load has been recorded.
struct RebalanceFacts {
  double imbalance = 1;     // of the placement that runs, by the recorded load (ExpectedImbalance)
  double possible = 1;      // of the placement that the planner would choose now
  double expert_share = 0;  // of a step's computing where experts were balanced (ExpertShare)
  double step_seconds = 0;  // mean, of this generation
  uint64_t steps_left = 0;
  double pause_seconds = 0;  // that a stop and a start take
};

// Seconds that the steps that are left get shorter, by the model: the part of a step that experts
// take grows with the busiest rank, the rest does not.
double PredictedGain(const RebalanceFacts& facts);

// Says that experts should move once, for rules.after without a break, the running placement's
// imbalance was at least rules.ratio times the possible one and the gain was at least
// kLeastGain times the pause. Then not again for kRest times rules.after. A placement by the newest
// load cannot be beaten by that ratio until the load itself has changed, so experts do not go back
// and forth.
// Thread-compatible.
class RebalanceWatch {
 public:
  static constexpr double kLeastGain = 2;
  static constexpr int kRest = 10;

  explicit RebalanceWatch(const RebalanceRules& when) : rules_(when) {}

  // Whether a look at newer facts is due: they are not free to compute.
  bool Due(absl::Time now) const;
  // Why experts should move now, for people; nothing: they should not.
  std::optional<std::string> Consider(const RebalanceFacts& facts, absl::Time now);
  // The generation ended, or its nodes change: what was seen before counts no more.
  void Forget() { since_ = absl::InfiniteFuture(); }

 private:
  RebalanceRules rules_;
  absl::Time since_ = absl::InfiniteFuture();  // it has been worthwhile
  absl::Time next_look_ = absl::InfinitePast();
};

}  // namespace moesaic
