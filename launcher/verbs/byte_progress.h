// ByteProgress: how far a long read has come, in bytes, with its rate and the time left. On a
// terminal one line that is redrawn; elsewhere a plain line now and then.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

#include "absl/time/time.h"
#include "base/clock.h"

namespace moesaic {

// "1.5 GB", "12 kB": decimal units, as disks and networks count.
std::string BytesForPeople(int64_t bytes);

// Thread-compatible. `out` and `clock` must outlive it.
class ByteProgress {
 public:
  ByteProgress(std::string what, bool terminal, std::ostream& out, const Clock& clock);
  // Removes the line that is being redrawn.
  ~ByteProgress();

  // Writes at most five times a second to a terminal, else every ten seconds.
  void Update(int64_t done, int64_t total);

 private:
  std::string what_;
  bool terminal_;
  std::ostream& out_;
  const Clock& clock_;
  absl::Time start_;
  absl::Time next_;
};

}  // namespace moesaic
