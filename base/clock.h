// Clock: the only source of time. Rules (scheduler/state) take `now` as an argument; edges hold a
// Clock, so that tests move time by hand.
#pragma once

#include "absl/time/time.h"

namespace moesaic {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // The wall time. Does not go backwards within one process (it is the wall time at start plus the
  // monotonic time since).
  virtual absl::Time Now() const = 0;

  // The machine's clock; lives as long as the process.
  static const Clock& System();
};

}  // namespace moesaic
