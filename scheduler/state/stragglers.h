// Ranks that compute slower than the others, from the times of their steps alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace moesaic {

struct Straggler {
  uint32_t rank = 0;
  double ratio = 0;  // its median step to the median over ranks
};

// A rank is slow when the median of its last steps is more than `ratio` times the median of the
// ranks' medians (the lower one of an even number, so that of two ranks one can be slow), and more
// than kNoise longer: what is shorter than that is the operating system's doing. It is named until
// it falls below nine tenths of that, so that it does not flicker.
// Thread-compatible.
class StragglerWatch {
 public:
  static constexpr size_t kWindow = 9;    // steps
  static constexpr size_t kMinSteps = 5;  // of every rank, before one is judged
  static constexpr double kNoise = 0.05;  // seconds

  StragglerWatch(size_t ranks, double ratio) : steps_(ranks), slow_(ranks, false), ratio_(ratio) {}

  // `seconds`: computing time of one more step on this rank.
  void Add(uint32_t rank, double seconds);
  // By rank. Judges by what was added so far.
  std::vector<Straggler> Slow();

 private:
  std::vector<std::deque<double>> steps_;
  std::vector<bool> slow_;
  double ratio_;
};

}  // namespace moesaic
