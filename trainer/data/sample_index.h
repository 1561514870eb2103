// SampleIndex: which sample of which source is the g-th of the training run. Pure arithmetic: no
// state but g itself, so the data cursor of a job is one number, whatever ranks read.
//
// Sources interleave by a periodic schedule in which, over every prefix of the run, the samples of
// a source differ from its share by less than one (the schedule is earliest-deadline-first, as for
// P-fair tasks: Baruah et al., "Proportionate progress", 1996). A source gives its samples in
// epochs; each epoch has every sample once, in an order drawn from (seed, source, epoch) by a
// Feistel permutation with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite
// domains", 2002), which needs no memory.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace moesaic {

struct SampleSource {
  int64_t samples = 0;  // of one epoch, > 0
  double weight = 1;    // > 0, relative to the other sources
};

struct SamplePlace {
  int source = 0;
  int64_t epoch = 0;   // of that source
  int64_t sample = 0;  // in [0, samples of the source)

  friend bool operator==(const SamplePlace&, const SamplePlace&) = default;
};

// The bijection of [0, size) for `key`: where position `i` goes. O(1) time in expectation. size >
// 0.
int64_t PermutedPosition(uint64_t key, int64_t size, int64_t i);

// Immutable, so thread-safe.
class SampleIndex {
 public:
  // InvalidArgument without sources, with more than kMaxPeriod of them, or when a source has no
  // samples or a weight that is not positive and finite.
  static absl::StatusOr<SampleIndex> Build(std::span<const SampleSource> sources, uint64_t seed);

  // The place of global sample `g` >= 0.
  SamplePlace At(int64_t g) const;

  // Samples of `source` among the first `g`.
  int64_t CountBefore(int source, int64_t g) const;

  // The schedule repeats after so many samples. Weights with a common denominator up to kMaxPeriod
  // are kept exactly; others are rounded to multiples of 1 / kMaxPeriod, and to one at the least.
  int64_t period() const { return static_cast<int64_t>(schedule_.size()); }
  // Samples of `source` in a period: its exact share is slots / period.
  int64_t slots(int source) const { return slots_[source]; }

  static constexpr int64_t kMaxPeriod = 65536;

 private:
  struct Slot {
    int32_t source = 0;
    int32_t before = 0;  // slots of that source earlier in the period
  };

  std::vector<int64_t> samples_;  // by source
  std::vector<int64_t> slots_;    // by source
  std::vector<Slot> schedule_;
  uint64_t seed_ = 0;
};

}  // namespace moesaic
