// Logging to stderr (stdout is for data). One header, so that spdlog can be compiled away from the
// rest. Formats are fmt's, checked at compile time:  LogInfo("rank {} joined", rank);
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace moesaic {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Thread-safe. Lines read "<time> <level> [<name>] <text>". Control characters in `text` are
// escaped, because parts of it may come from another process.
void LogLine(LogLevel level, std::string_view text);

// Sets the name that stands in every line (for example "rank 3") and the lowest level written.
// Call once, early in main.
void ConfigureLog(std::string_view name, LogLevel lowest);

template <typename... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  LogLine(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  LogLine(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  LogLine(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  LogLine(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace moesaic
