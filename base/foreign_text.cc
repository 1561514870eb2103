#include "base/foreign_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"

namespace moesaic {
namespace {

constexpr size_t kMaxName = 63;
constexpr size_t kMaxShown = 100;

}  // namespace

bool IsName(absl::string_view text) {
  if (text.empty() || text.size() > kMaxName || absl::StrContains(text, "..")) return false;
  const auto alphanumeric = [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c); };
  if (!alphanumeric(text[0])) return false;
  return std::all_of(text.begin(), text.end(),
                     [&](char c) { return alphanumeric(c) || c == '.' || c == '_' || c == '-'; });
}

absl::Status CheckName(absl::string_view kind, absl::string_view text) {
  if (IsName(text)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("\"{}\" is not the name of a {}: it takes 1 to {} of a-z, 0-9, '.', '_' and '-', "
                  "starts with a letter or digit and has no \"..\"",
                  EscapeControls(text.substr(0, kMaxShown)), std::string(kind), kMaxName));
}

std::string EscapeControls(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto next = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
    const bool c1 = byte == 0xc2 && next >= 0x80 && next < 0xa0;
    if (c1) {
      out += fmt::format("\\x{:02x}", next);
      ++i;
    } else if ((byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace moesaic
