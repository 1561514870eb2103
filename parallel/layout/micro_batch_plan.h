// MicroBatchPlan: which rank runs which logical micro-batches of a step.
//
// A step has `micro_batches` of them with ids 0..M-1 in data order. Data coordinate r of R runs the
// contiguous block [floor(M r / R), floor(M (r + 1) / R)), so counts differ by at most one. All
// ranks go through the same number of rounds; a rank without a micro-batch in a round joins the
// exchanges with zero rows.
#pragma once

#include <cstdint>
#include <optional>

namespace moesaic {

// A value; thread-safe.
struct MicroBatchPlan {
  int64_t micro_batches = 0;
  int ranks = 1;  // on the data axis

  int64_t begin(int data) const { return micro_batches * data / ranks; }
  int64_t end(int data) const { return micro_batches * (data + 1) / ranks; }
  // Rounds of a step: the largest count of any rank.
  int64_t rounds() const { return (micro_batches + ranks - 1) / ranks; }
  // The micro-batch that `data` runs in `round`, if any.
  std::optional<int64_t> At(int64_t round, int data) const {
    const int64_t id = begin(data) + round;
    return id < end(data) ? std::optional<int64_t>(id) : std::nullopt;
  }
};

}  // namespace moesaic
