// Seeded chance (SplitMix64) and a queue of what happens when: together, a world that a seed fixes.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace moesaic {

class Chance {
 public:
  explicit Chance(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint32_t Below(uint32_t n) { return static_cast<uint32_t>(Next() % n); }
  bool OneIn(uint32_t n) { return Below(n) == 0; }
  // Between the two, in milliseconds.
  absl::Duration Ms(uint32_t from, uint32_t to) {
    return absl::Milliseconds(from + Below(to - from + 1));
  }

 private:
  uint64_t state_;
};

class Timeline {
 public:
  absl::Time now() const { return now_; }
  void At(absl::Time when, std::function<void()> act) {
    queue_.push({std::max(when, now_), ++order_, std::move(act)});
  }
  void After(absl::Duration delay, std::function<void()> act) { At(now_ + delay, std::move(act)); }
  // False when nothing is left to happen.
  bool Step() {
    if (queue_.empty()) return false;
    Entry next = std::move(const_cast<Entry&>(queue_.top()));
    queue_.pop();
    now_ = next.when;
    next.act();
    return true;
  }

 private:
  struct Entry {
    absl::Time when;
    uint64_t order;
    std::function<void()> act;
    bool operator<(const Entry& other) const {
      return std::pair(when, order) > std::pair(other.when, other.order);
    }
  };
  absl::Time now_ = absl::FromUnixSeconds(1000);
  uint64_t order_ = 0;
  std::priority_queue<Entry> queue_;
};

}  // namespace moesaic
