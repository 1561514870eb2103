#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>

#include "base/foreign_text.h"

namespace moesaic {
namespace {

std::shared_ptr<spdlog::logger> MakeLogger(std::string_view name) {
  auto logger = std::make_shared<spdlog::logger>(
      std::string(name), std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ [%n] %v");
  logger->flush_on(spdlog::level::debug);
  return logger;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarning: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
  }
  return spdlog::level::err;
}

std::shared_ptr<spdlog::logger>& Logger() {
  static std::shared_ptr<spdlog::logger> logger = MakeLogger("moesaic");
  return logger;
}

}  // namespace

void LogLine(LogLevel level, std::string_view text) {
  Logger()->log(ToSpdlog(level), "{}", EscapeControls(absl::string_view(text.data(), text.size())));
}

void ConfigureLog(std::string_view name, LogLevel lowest) {
  Logger() = MakeLogger(name);
  Logger()->set_level(ToSpdlog(lowest));
}

}  // namespace moesaic
