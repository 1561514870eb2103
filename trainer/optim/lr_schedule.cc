#include "trainer/optim/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moesaic {
namespace {

double Linear(double final_factor, double share) { return 1 - (1 - final_factor) * share; }

// How much of [begin, end) lies before `step`, as a share in 0..1.
double ShareDone(uint64_t begin, uint64_t end, uint64_t step) {
  if (step <= begin || end <= begin) return 0;
  return std::min(1.0, static_cast<double>(step - begin) / static_cast<double>(end - begin));
}

}  // namespace

double LearningRateFactor(const ScheduleSpec& schedule, uint64_t total_steps, uint64_t step) {
  const uint64_t warmup = schedule.warmup_steps();
  if (step < warmup) return static_cast<double>(step + 1) / static_cast<double>(warmup);
  const double share = ShareDone(warmup, total_steps, step);
  switch (schedule.kind_case()) {
    case ScheduleSpec::kConstant:
      return 1;
    case ScheduleSpec::kLinear:
      return Linear(schedule.linear().final_factor(), share);
    case ScheduleSpec::kWsd: {
      const uint64_t decay = std::min(schedule.wsd().decay_steps(), total_steps);
      return Linear(schedule.wsd().final_factor(),
                    ShareDone(std::max(warmup, total_steps - decay), total_steps, step));
    }
    case ScheduleSpec::kCosine:
    case ScheduleSpec::KIND_NOT_SET: {
      const double floor = schedule.cosine().final_factor();
      return floor + (1 - floor) * (1 + std::cos(std::numbers::pi * share)) / 2;
    }
  }
  return 1;
}

}  // namespace moesaic
