#include "launcher/verbs/listing.h"

#include <algorithm>

#include "launcher/run/progress_view.h"

namespace moesaic {

std::string CheckDuration(const std::string& text) {
  absl::Duration duration;
  const bool valid = absl::ParseDuration(text, &duration) && duration >= absl::ZeroDuration();
  return valid ? "" : "must be a duration such as 90s or 1h30m";
}

std::string JsonLine(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json JsonTime(int64_t unix_ns) { return unix_ns == 0 ? Json() : Json(TimeForPeople(unix_ns)); }

std::string TimeForPeople(int64_t unix_ns) {
  if (unix_ns == 0) return "-";
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixNanos(unix_ns), absl::UTCTimeZone());
}

std::string AgeForPeople(int64_t unix_ns, absl::Time now) {
  if (unix_ns == 0) return "-";
  const absl::Duration age = std::max(now - absl::FromUnixNanos(unix_ns), absl::ZeroDuration());
  return DurationForPeople(absl::ToDoubleSeconds(age));
}

}  // namespace moesaic
