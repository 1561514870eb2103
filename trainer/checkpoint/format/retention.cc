#include "trainer/checkpoint/format/retention.h"

#include <algorithm>
#include <cmath>

namespace moesaic {
namespace {

// Indices of the steps that count, ascending.
std::vector<size_t> Undamaged(std::span<const StepFacts> steps) {
  std::vector<size_t> sound;
  for (size_t i = 0; i < steps.size(); ++i) {
    if (!steps[i].damaged) sound.push_back(i);
  }
  return sound;
}

std::vector<size_t> FirstOfEachWindow(uint64_t every, std::span<const StepFacts> steps,
                                      const std::vector<size_t>& sound) {
  std::vector<size_t> first;
  if (every == 0) return first;
  uint64_t window = 0;
  for (size_t i : sound) {
    if (steps[i].step / every == window) continue;
    window = steps[i].step / every;
    first.push_back(i);
  }
  return first;
}

std::vector<size_t> Best(uint32_t count, std::span<const StepFacts> steps,
                         const std::vector<size_t>& sound) {
  std::vector<size_t> measured;
  std::ranges::copy_if(sound, std::back_inserter(measured), [&](size_t i) {
    return steps[i].metric && !std::isnan(*steps[i].metric);
  });
  std::ranges::sort(measured, [&](size_t a, size_t b) {
    return *steps[a].metric != *steps[b].metric ? *steps[a].metric < *steps[b].metric : a > b;
  });
  measured.resize(std::min<size_t>(measured.size(), count));
  return measured;
}

std::vector<size_t> YoungerThan(double seconds, absl::Time now, std::span<const StepFacts> steps,
                                const std::vector<size_t>& sound) {
  std::vector<size_t> young;
  if (seconds <= 0) return young;
  std::ranges::copy_if(sound, std::back_inserter(young), [&](size_t i) {
    return now - steps[i].created <= absl::Seconds(seconds);
  });
  return young;
}

}  // namespace

absl::string_view KeepReasonName(KeepReason reason) {
  switch (reason) {
    case KeepReason::kPinned:
      return "pinned";
    case KeepReason::kNewest:
      return "newest";
    case KeepReason::kEvery:
      return "every";
    case KeepReason::kBest:
      return "best";
    case KeepReason::kWithin:
      return "within";
    case KeepReason::kDamaged:
      return "damaged";
  }
  return "?";
}

std::vector<KeepDecision> ChooseKept(const KeepSpec& keep, std::span<const StepFacts> steps,
                                     absl::Time now) {
  std::vector<KeepDecision> decisions(steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    decisions[i].step = steps[i].step;
    if (steps[i].pinned) decisions[i].reasons.push_back(KeepReason::kPinned);
    if (steps[i].damaged) decisions[i].reasons.push_back(KeepReason::kDamaged);
  }
  const std::vector<size_t> sound = Undamaged(steps);
  const size_t last = std::min<size_t>(sound.size(), std::max(keep.last(), 1u));
  for (size_t i = sound.size() - last; i < sound.size(); ++i) {
    decisions[sound[i]].reasons.push_back(KeepReason::kNewest);
  }
  for (size_t i : FirstOfEachWindow(keep.every_steps(), steps, sound)) {
    decisions[i].reasons.push_back(KeepReason::kEvery);
  }
  for (size_t i : Best(keep.best(), steps, sound)) {
    decisions[i].reasons.push_back(KeepReason::kBest);
  }
  for (size_t i : YoungerThan(keep.within(), now, steps, sound)) {
    decisions[i].reasons.push_back(KeepReason::kWithin);
  }
  return decisions;
}

std::optional<double> MetricOf(CheckpointMetric metric, const TrainingState& state) {
  if (metric == TRAINING_LOSS) {
    return state.has_loss() ? std::optional(state.loss()) : std::nullopt;
  }
  return state.has_validation_loss() ? std::optional(state.validation_loss()) : std::nullopt;
}

}  // namespace moesaic
