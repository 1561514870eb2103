// The `moesaic` program: reads the process environment, and hands the command line to its verb.
#include <filesystem>
#include <iostream>

#include "base/log.h"
#include "launcher/environment.h"
#include "launcher/verbs/verb_list.h"
#include "trainer/data/tokenizer.h"

namespace moesaic {
namespace {

bool SetLogLevel(const std::map<std::string, std::string>& environment) {
  static const std::map<std::string, LogLevel> levels = {{"debug", LogLevel::kDebug},
                                                         {"info", LogLevel::kInfo},
                                                         {"warning", LogLevel::kWarning},
                                                         {"error", LogLevel::kError}};
  const auto variable = environment.find("MOESAIC_LOG_LEVEL");
  const auto level = levels.find(variable == environment.end() ? "info" : variable->second);
  if (level == levels.end()) return false;
  ConfigureLog("moesaic", level->second);
  return true;
}

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) {
  moesaic::VerbContext context{.out = std::cout,
                               .err = std::cerr,
                               .environment = moesaic::ProcessEnvironment(),
                               .program_path = "",
                               .vocabulary_of = moesaic::TokenizerVocabulary};
  if (!moesaic::SetLogLevel(context.environment)) {
    std::cerr << "moesaic: MOESAIC_LOG_LEVEL must be debug, info, warning or error\n";
    return moesaic::kExitUsage;
  }
  std::error_code ignored;
  context.program_path = std::filesystem::read_symlink("/proc/self/exe", ignored).string();
  return moesaic::RunProgram({argv + 1, argv + argc}, context);
}
