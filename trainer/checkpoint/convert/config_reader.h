// ConfigReader: values of a config.json that somebody else wrote.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace moesaic {

inline constexpr char kConfigName[] = "config.json";

// DataLoss when `text` is not an object, or is nested too deeply. `name` is for the message.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, absl::string_view name);

// Reads values and keeps the first complaint, a FailedPrecondition; after one, what the getters
// return means nothing. A value of null counts as absent.
class ConfigReader {
 public:
  // `config` must outlive the reader.
  explicit ConfigReader(const nlohmann::json& config) : config_(config) {}

  uint32_t Count(const char* key, std::optional<uint32_t> absent = std::nullopt);
  double Number(const char* key, double absent);
  bool Flag(const char* key, bool absent);
  // Whole numbers, none when absent; at most as many as `most`.
  std::vector<uint32_t> Counts(const char* key, size_t most);

  // The value must be absent, null or `only`.
  void Require(const char* key, const nlohmann::json& only);

  // Null when it is absent or null.
  const nlohmann::json* Find(const char* key) const;
  // Absent is not null here: some keys have a default that null switches off.
  bool Has(const char* key) const { return config_.contains(key); }

  void Complain(absl::string_view text);
  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json& config_;
  absl::Status status_;
};

// A JSON value for a message.
std::string ShortJson(const nlohmann::json& value);

}  // namespace moesaic
