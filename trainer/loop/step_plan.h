// StepPlan: what one step works on, as arithmetic on the data cursor. The global batch is a
// function of the job, never of the ranks; micro-batches a rank follow.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moesaic {

// Samples [first, first + count) of the stream, in logical micro-batches of `micro_batch` samples
// (the last may have fewer, in validation).
struct StepPlan {
  int64_t first = 0;
  int64_t count = 0;
  int64_t micro_batch = 1;

  int64_t micro_batches() const { return (count + micro_batch - 1) / micro_batch; }
  int64_t sample_begin(int64_t id) const { return first + id * micro_batch; }
  int64_t samples(int64_t id) const { return std::min(micro_batch, count - id * micro_batch); }
};

}  // namespace moesaic
