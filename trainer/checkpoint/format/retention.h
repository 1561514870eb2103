// Which checkpoints stay. A pure function, so that the coordinator, `moesaic ckpt ls` and a test
// agree.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/checkpoint.pb.h"
#include "proto/job.pb.h"

namespace moesaic {

// What retention looks at in one committed step.
struct StepFacts {
  uint64_t step = 0;
  bool pinned = false;
  // Known not to verify. It neither counts nor goes: quarantine is the place for it.
  bool damaged = false;
  // The one that keep.best_by names, where the checkpoint has it.
  std::optional<double> metric;
  // When it was made, as its manifest says; looked at where keep.within is given.
  absl::Time created = absl::InfinitePast();
};

enum class KeepReason { kPinned, kNewest, kEvery, kBest, kWithin, kDamaged };

// "pinned", "newest", "every", "best", "within", "damaged".
absl::string_view KeepReasonName(KeepReason reason);

// The reasons for which a step stays; none: it goes.
struct KeepDecision {
  uint64_t step = 0;
  std::vector<KeepReason> reasons;

  bool kept() const { return !reasons.empty(); }
};

// One decision a step, in the order of `steps`, which must ascend strictly. A step stays when it is
// pinned or damaged, is one of the newest keep.last (at least one) that are not damaged, is the
// first that is not damaged in a window [k * keep.every_steps, (k + 1) * keep.every_steps), k >= 1,
// has one of the keep.best lowest metrics (the later of equal ones; not-a-number counts as none),
// or was made at most keep.within before `now` (also after it: clocks are set back). So the newest
// step that is not damaged always stays.
std::vector<KeepDecision> ChooseKept(const KeepSpec& keep, std::span<const StepFacts> steps,
                                     absl::Time now);

// The metric of a checkpoint; nothing when it has none.
std::optional<double> MetricOf(CheckpointMetric metric, const TrainingState& state);

}  // namespace moesaic
