// bias: loss-free balancing (Wang et al., arXiv 2408.15664). A bias of each expert is added to the
// scores in the selection only, and moves once an optimizer step, against the load:
//   e_i = mean(c) - c_i;   b_i += u * sign(e_i), sign(0) = 0,   or   b_i += u * e_i / mean(c)
#pragma once

#include <cstdint>
#include <span>

#include "proto/job.pb.h"

namespace moesaic {

// Moves `bias` after step `step` (0-based), in which expert i was chosen counts[i] times over the
// whole global batch, before any drop. The counts are integers, so every rank of any layout moves
// its copy to the same bits. Without tokens nothing moves. `candidates`: which experts could be
// chosen in that step; the mean is of these and only these move (empty: all).
void MoveBias(const BiasSpec& rule, uint64_t step, std::span<const double> counts,
              std::span<const bool> candidates, std::span<float> bias);

}  // namespace moesaic
