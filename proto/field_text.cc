#include "proto/field_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"

namespace moesaic {
namespace {

using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

struct ByteUnit {
  const char* name;
  uint64_t bytes;
};
constexpr std::array<ByteUnit, 5> kByteUnits = {{{"TiB", uint64_t{1} << 40},
                                                 {"GiB", uint64_t{1} << 30},
                                                 {"MiB", uint64_t{1} << 20},
                                                 {"KiB", uint64_t{1} << 10},
                                                 {"B", 1}}};

absl::Status Expected(absl::string_view what, absl::string_view text, absl::string_view hint = "") {
  return absl::InvalidArgumentError(absl::StrCat("expected ", what, ", got \"",
                                                 absl::Utf8SafeCHexEscape(text), "\"",
                                                 hint.empty() ? "" : "; ", hint));
}

bool AllDigits(absl::string_view text) {
  for (char c : text) {
    if (!absl::ascii_isdigit(c)) return false;
  }
  return !text.empty();
}

bool HasLeadingZero(absl::string_view digits) { return digits.size() > 1 && digits[0] == '0'; }

// [-] digits [. digits] [e [+-] digits], with a digit before or after the point. What strtod takes
// beyond that (hexadecimal, inf, nan, a leading plus) is a mistake in a job file.
bool IsDecimal(absl::string_view text) {
  absl::ConsumePrefix(&text, "-");
  size_t i = 0;
  auto digits = [&] {
    const size_t begin = i;
    while (i < text.size() && absl::ascii_isdigit(text[i])) ++i;
    return i - begin;
  };
  const size_t whole = digits();
  if (HasLeadingZero(text.substr(0, whole))) return false;
  size_t fraction = 0;
  if (i < text.size() && text[i] == '.') {
    ++i;
    fraction = digits();
  }
  if (whole + fraction == 0) return false;
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
    if (digits() == 0) return false;
  }
  return i == text.size();
}

bool IsUtf8(absl::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i++]);
    if (lead < 0x80) continue;
    const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    if (lead < 0xC2 || lead > 0xF4 || text.size() - i < static_cast<size_t>(more)) return false;
    uint32_t code = lead & (0x3F >> more);
    for (int k = 0; k < more; ++k) {
      const auto next = static_cast<unsigned char>(text[i++]);
      if ((next & 0xC0) != 0x80) return false;
      code = (code << 6) | (next & 0x3F);
    }
    constexpr uint32_t kSmallest[] = {0, 0x80, 0x800, 0x10000};
    if (code < kSmallest[more] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
      return false;
    }
  }
  return true;
}

absl::StatusOr<uint64_t> ParseWhole(absl::string_view text, uint64_t max) {
  if (AllDigits(text) && HasLeadingZero(text)) {
    const absl::string_view decimal =
        text.substr(std::min(text.find_first_not_of('0'), text.size() - 1));
    return Expected("a whole number", text,
                    absl::StrCat("a leading zero looks octal: write ", decimal));
  }
  if (!AllDigits(text)) {
    absl::string_view digits = text;
    if (absl::ConsumePrefix(&digits, "-") && AllDigits(digits)) {
      return Expected("a whole number that is not negative", text);
    }
    return Expected("a whole number", text,
                    absl::StartsWithIgnoreCase(text, "0x") ? "write it in decimal" : "");
  }
  uint64_t value = 0;
  if (!absl::SimpleAtoi(text, &value) || value > max) {
    return Expected(absl::StrCat("a whole number of at most ", max), text);
  }
  return value;
}

absl::StatusOr<double> ParseNumber(absl::string_view text) {
  double value = 0;
  if (!IsDecimal(text) || !absl::SimpleAtod(text, &value)) return Expected("a number", text);
  if (!std::isfinite(value)) return Expected("a finite number", text);
  return value;
}

absl::StatusOr<double> ParseSeconds(absl::string_view text) {
  constexpr absl::string_view kWhat = "a duration such as 5s, 200ms or 1h30m";
  if (IsDecimal(text)) return Expected(kWhat, text, absl::StrCat("write ", text, "s for seconds"));
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration)) return Expected(kWhat, text);
  if (duration == absl::InfiniteDuration() || duration == -absl::InfiniteDuration()) {
    return Expected("a finite duration", text);
  }
  return absl::ToDoubleSeconds(duration);
}

absl::StatusOr<bool> ParseBool(absl::string_view text) {
  if (text == "true") return true;
  if (text == "false") return false;
  const std::string lower = absl::AsciiStrToLower(text);
  if (lower == "yes" || lower == "on" || lower == "true") {
    return Expected("true or false", text, "write true");
  }
  if (lower == "no" || lower == "off" || lower == "false") {
    return Expected("true or false", text, "write false");
  }
  return Expected("true or false", text);
}

absl::StatusOr<const EnumValueDescriptor*> ParseEnum(absl::string_view text,
                                                     const EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) {
    names.push_back(EnumText(*type.value(i)));
    if (names.back() == text) return type.value(i);
  }
  return Expected(absl::StrCat(names.size() > 1 ? "one of " : "", absl::StrJoin(names, ", ")),
                  text);
}

std::string SecondsText(double seconds) {
  if (seconds == 0) return "0s";
  std::string text = absl::FormatDuration(absl::Seconds(seconds));
  if (absl::EndsWith(text, "m0s")) text.resize(text.size() - 2);
  if (absl::EndsWith(text, "h0m")) text.resize(text.size() - 2);
  return text;
}

}  // namespace

const FieldRules& RulesOf(const FieldDescriptor& field) {
  return field.options().GetExtension(rules);
}

std::string EnumText(const EnumValueDescriptor& value) {
  return absl::AsciiStrToLower(value.name());
}

std::string PhaseText(RecipePhase phase) {
  return phase == STEADY ? "" : absl::AsciiStrToLower(RecipePhase_Name(phase));
}

absl::Status SetFieldFromText(absl::string_view text, const FieldDescriptor& field,
                              Message* message) {
  const Reflection& reflection = *message->GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      // As protobuf would refuse to send anything else.
      if (!IsUtf8(text)) return absl::InvalidArgumentError("expected text in UTF-8");
      reflection.SetString(message, &field, std::string(text));
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_BOOL: {
      auto value = ParseBool(text);
      if (!value.ok()) return value.status();
      reflection.SetBool(message, &field, *value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT32: {
      auto value = ParseWhole(text, std::numeric_limits<uint32_t>::max());
      if (!value.ok()) return value.status();
      reflection.SetUInt32(message, &field, static_cast<uint32_t>(*value));
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      auto value = RulesOf(field).unit() == UNIT_BYTES
                       ? ParseBytes(text)
                       : ParseWhole(text, std::numeric_limits<uint64_t>::max());
      if (!value.ok()) return value.status();
      reflection.SetUInt64(message, &field, *value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      auto value = RulesOf(field).unit() == UNIT_DURATION ? ParseSeconds(text) : ParseNumber(text);
      if (!value.ok()) return value.status();
      reflection.SetDouble(message, &field, *value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      auto value = ParseEnum(text, *field.enum_type());
      if (!value.ok()) return value.status();
      reflection.SetEnum(message, &field, *value);
      return absl::OkStatus();
    }
    default:
      return absl::InternalError(
          absl::StrCat("the schema has no text form for the type of ", field.full_name()));
  }
}

std::string FieldText(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection.GetString(message, &field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(message, &field) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(reflection.GetUInt32(message, &field));
    case FieldDescriptor::CPPTYPE_UINT64: {
      const uint64_t value = reflection.GetUInt64(message, &field);
      return RulesOf(field).unit() == UNIT_BYTES ? FormatBytes(value) : absl::StrCat(value);
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      const double value = reflection.GetDouble(message, &field);
      return RulesOf(field).unit() == UNIT_DURATION ? SecondsText(value) : fmt::format("{}", value);
    }
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumText(*reflection.GetEnum(message, &field));
    default:
      return "";
  }
}

absl::StatusOr<uint64_t> ParseBytes(absl::string_view text) {
  constexpr absl::string_view kWhat = "a size such as 2GiB, 512MiB or 1000";
  absl::string_view number = text;
  uint64_t unit = 1;
  for (const ByteUnit& u : kByteUnits) {
    if (absl::ConsumeSuffix(&number, u.name)) {
      unit = u.bytes;
      break;
    }
  }
  double value = 0;
  if (!IsDecimal(number) || !absl::SimpleAtod(number, &value) || value < 0) {
    return Expected(kWhat, text, "units are B, KiB, MiB, GiB, TiB");
  }
  const double bytes = value * static_cast<double>(unit);
  if (bytes > 0x1p63) return Expected("a size of at most 2^63 bytes", text);
  if (bytes != std::floor(bytes)) return Expected("a whole number of bytes", text);
  uint64_t whole = 0;
  if (absl::SimpleAtoi(number, &whole)) return whole * unit;
  return static_cast<uint64_t>(bytes);
}

std::string FormatBytes(uint64_t bytes) {
  for (const ByteUnit& unit : kByteUnits) {
    if (bytes != 0 && bytes % unit.bytes == 0 && unit.bytes > 1) {
      return absl::StrCat(bytes / unit.bytes, unit.name);
    }
  }
  return absl::StrCat(bytes);
}

}  // namespace moesaic
