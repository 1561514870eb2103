// How often one client may submit a job, and how many jobs there may be. A token bucket for each
// client; time is passed in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace moesaic {

struct SubmissionLimits {
  // Submissions of one client, in the long run; 0: as many as it likes.
  double per_minute = 60;
  // So many at once, after a time without any.
  uint32_t burst = 60;
  // Jobs that have not ended, of all clients; 0: any number.
  uint32_t live_jobs = 10000;
};

// Thread-compatible.
class SubmissionLimiter {
 public:
  explicit SubmissionLimiter(const SubmissionLimits& limits) : limits_(limits) {}

  // Counts a submission at `now`, which does not go backwards. ResourceExhausted, and nothing is
  // counted, when the client has sent too many (the message says when to try again) or there are
  // `live_jobs` already. `client` says who it is: the address it calls from.
  absl::Status Admit(const std::string& client, size_t live_jobs, absl::Time now);

  // Clients that are remembered: those that have submitted within the time in which a bucket fills.
  size_t clients() const { return full_.size(); }

 private:
  const SubmissionLimits limits_;
  // When each client's bucket will be full again; that of a client who is not here is full.
  std::map<std::string, absl::Time> full_;
};

}  // namespace moesaic
