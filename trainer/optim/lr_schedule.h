// The learning-rate schedule as a pure function of the step.
#pragma once

#include <cstdint>

#include "proto/job.pb.h"

namespace moesaic {

// The factor that multiplies the optimizer's lr in step `step` (0-based) of `total_steps`. Warm-up
// rises linearly, (step + 1) / warmup_steps, and then with p = the share of the remaining steps done:
//   cosine    f + (1 - f) (1 + cos(pi p)) / 2        linear  1 - (1 - f) p        constant  1
//   wsd       1 until the last decay_steps, then linearly to f
// f is final_factor, reached at step total_steps. `schedule` must be resolved.
double LearningRateFactor(const ScheduleSpec& schedule, uint64_t total_steps, uint64_t step);

}  // namespace moesaic
