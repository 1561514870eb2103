#include "trainer/checkpoint/convert/config_reader.h"

#include "absl/strings/str_cat.h"

namespace moesaic {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 16;
constexpr size_t kMaxShown = 100;

bool IsCount(const Json& value) {
  return value.is_number_unsigned() && value.get<uint64_t>() <= UINT32_MAX;
}

}  // namespace

absl::StatusOr<Json> ParseJsonObject(absl::string_view text, absl::string_view name) {
  bool too_deep = false;
  Json json = Json::parse(
      text.begin(), text.end(),
      [&](int depth, Json::parse_event_t, Json&) {
        too_deep |= depth > kMaxDepth;
        return depth <= kMaxDepth;
      },
      /*allow_exceptions=*/false);
  if (too_deep || json.is_discarded() || !json.is_object()) {
    return absl::DataLossError(absl::StrCat(name, " is not a JSON object"));
  }
  return json;
}

std::string ShortJson(const Json& value) {
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

uint32_t ConfigReader::Count(const char* key, std::optional<uint32_t> absent) {
  const Json* value = Find(key);
  if (value == nullptr && absent) return *absent;
  if (value == nullptr || !IsCount(*value)) {
    Complain(absl::StrCat(key, " must be a whole number"));
    return 0;
  }
  return value->get<uint32_t>();
}

double ConfigReader::Number(const char* key, double absent) {
  const Json* value = Find(key);
  if (value == nullptr) return absent;
  if (!value->is_number()) {
    Complain(absl::StrCat(key, " must be a number"));
    return absent;
  }
  return value->get<double>();
}

bool ConfigReader::Flag(const char* key, bool absent) {
  const Json* value = Find(key);
  if (value == nullptr) return absent;
  if (!value->is_boolean()) Complain(absl::StrCat(key, " must be true or false"));
  return value->is_boolean() && value->get<bool>();
}

std::vector<uint32_t> ConfigReader::Counts(const char* key, size_t most) {
  const Json* value = Find(key);
  std::vector<uint32_t> counts;
  if (value == nullptr) return counts;
  if (!value->is_array() || value->size() > most) {
    Complain(absl::StrCat(key, " must be a list of at most ", most, " whole numbers"));
    return counts;
  }
  for (const Json& each : *value) {
    if (!IsCount(each)) Complain(absl::StrCat(key, " must be a list of whole numbers"));
    counts.push_back(IsCount(each) ? each.get<uint32_t>() : 0);
  }
  return counts;
}

void ConfigReader::Require(const char* key, const Json& only) {
  const Json* value = Find(key);
  if (value != nullptr && *value != only) {
    Complain(absl::StrCat(key, " is ", ShortJson(*value), "; only ", only.dump(),
                          " has a counterpart here"));
  }
}

const Json* ConfigReader::Find(const char* key) const {
  const auto found = config_.find(key);
  return found == config_.end() || found->is_null() ? nullptr : &*found;
}

void ConfigReader::Complain(absl::string_view text) {
  if (status_.ok()) {
    status_ = absl::FailedPreconditionError(absl::StrCat(kConfigName, ": ", text));
  }
}

}  // namespace moesaic
