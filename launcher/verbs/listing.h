// What all listings share: JSON, times and foreign text made harmless.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/time/time.h"
#include "launcher/verbs/table.h"

namespace moesaic {

using Json = nlohmann::ordered_json;

// For CLI11: empty, or what is wrong with a duration such as "1h30m".
std::string CheckDuration(const std::string& text);

// On one line; bytes that are not UTF-8 are replaced.
std::string JsonLine(const Json& json);

// "2026-01-31T12:00:00Z"; null or "-" for 0.
Json JsonTime(int64_t unix_ns);
std::string TimeForPeople(int64_t unix_ns);
// "3m05s"; "-" for 0.
std::string AgeForPeople(int64_t unix_ns, absl::Time now);

}  // namespace moesaic
