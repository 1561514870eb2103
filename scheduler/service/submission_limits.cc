#include "scheduler/service/submission_limits.h"

#include <fmt/format.h>

#include <algorithm>

namespace moesaic {

absl::Status SubmissionLimiter::Admit(const std::string& client, size_t live_jobs,
                                      absl::Time now) {
  if (limits_.live_jobs > 0 && live_jobs >= limits_.live_jobs) {
    return absl::ResourceExhaustedError(
        fmt::format("{} jobs have not ended, and no more are taken: try again when one has ended "
                    "(moesaic coordinator --max-jobs)",
                    live_jobs));
  }
  if (limits_.per_minute <= 0) return absl::OkStatus();
  std::erase_if(full_, [&](const auto& entry) { return entry.second <= now; });
  const absl::Duration token = absl::Minutes(1) / limits_.per_minute;
  absl::Time& full = full_.try_emplace(client, now).first->second;
  const absl::Duration wait = full + token - now - token * std::max(limits_.burst, 1u);
  if (wait > absl::ZeroDuration()) {
    return absl::ResourceExhaustedError(
        fmt::format("{} submits too often ({} a minute, {} at once): try again in {} s (moesaic "
                    "coordinator --submit-rate)",
                    client, limits_.per_minute, limits_.burst,
                    absl::ToInt64Seconds(absl::Ceil(wait, absl::Seconds(1)))));
  }
  full += token;
  return absl::OkStatus();
}

}  // namespace moesaic
