#include "scheduler/state/rebalance.h"

#include <fmt/format.h>

#include <algorithm>

namespace moesaic {
namespace {

constexpr int kLooks = 4;  // within rules.after

}  // namespace

double PredictedGain(const RebalanceFacts& facts) {
  const double rest = 1 - facts.expert_share;
  const double now = rest + facts.expert_share * facts.imbalance;
  const double then = rest + facts.expert_share * facts.possible;
  return now > 0 ? facts.step_seconds * static_cast<double>(facts.steps_left) * (1 - then / now)
                 : 0;
}

bool RebalanceWatch::Due(absl::Time now) const { return rules_.ratio > 0 && now >= next_look_; }

std::optional<std::string> RebalanceWatch::Consider(const RebalanceFacts& facts, absl::Time now) {
  next_look_ = now + rules_.after / kLooks;
  const double gain = PredictedGain(facts);
  const bool worthwhile = rules_.ratio > 0 && facts.imbalance >= rules_.ratio * facts.possible &&
                          gain >= kLeastGain * facts.pause_seconds;
  if (!worthwhile) {
    since_ = absl::InfiniteFuture();
    return std::nullopt;
  }
  since_ = std::min(since_, now);
  if (now < since_ + rules_.after) return std::nullopt;
  since_ = absl::InfiniteFuture();
  next_look_ = now + kRest * rules_.after;
  return fmt::format(
      "for {} the busiest ranks have taken {:.2f} of the mean, {:.2f} once experts move; the {} "
      "steps that are left gain about {:.0f} s, the pause takes about {:.0f} s",
      absl::FormatDuration(rules_.after), facts.imbalance, facts.possible, facts.steps_left, gain,
      facts.pause_seconds);
}

}  // namespace moesaic
