#include "scheduler/service/submission_limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace moesaic {

double SubmissionLimiter::TokensAt(const Bucket& bucket, absl::Time now) const {
  const double filled =
      bucket.tokens + absl::ToDoubleMinutes(now - bucket.at) * limits_.per_minute;
  return std::min(filled, static_cast<double>(std::max(limits_.burst, 1u)));
}

absl::Status SubmissionLimiter::Admit(const std::string& client, size_t live_jobs,
                                      absl::Time now) {
  if (limits_.live_jobs > 0 && live_jobs >= limits_.live_jobs) {
    return absl::ResourceExhaustedError(
        fmt::format("{} jobs have not ended, and no more are taken: try again when one has ended "
                    "(moesaic coordinator --max-jobs)",
                    live_jobs));
  }
  if (limits_.per_minute <= 0) return absl::OkStatus();
  const double full = std::max(limits_.burst, 1u);
  std::erase_if(buckets_, [&](const auto& entry) { return TokensAt(entry.second, now) >= full; });
  const auto [bucket, fresh] = buckets_.try_emplace(client, Bucket{full, now});
  bucket->second = {TokensAt(bucket->second, now), now};
  if (bucket->second.tokens < 1) {
    const double wait = (1 - bucket->second.tokens) / limits_.per_minute * 60;
    return absl::ResourceExhaustedError(
        fmt::format("{} submits too often ({} a minute, {} at once): try again in {} s (moesaic "
                    "coordinator --submit-rate)",
                    client, limits_.per_minute, full, static_cast<int64_t>(std::ceil(wait))));
  }
  bucket->second.tokens -= 1;
  return absl::OkStatus();
}

}  // namespace moesaic
