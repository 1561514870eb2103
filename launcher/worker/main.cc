// The `moesaic-worker` program: one rank of a training job, or a verb that computes on tensors. People
// use `moesaic`, which starts it.
#include <cstdlib>
#include <iostream>
#include <map>
#include <string>

#include "base/log.h"
#include "launcher/exit_codes.h"
#include "launcher/worker/evaluate.h"
#include "launcher/worker/generate.h"
#include "launcher/worker/train.h"

namespace moesaic {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

LogLevel LevelNamed(const std::string& name) {
  static const std::map<std::string, LogLevel> levels = {{"debug", LogLevel::kDebug},
                                                         {"warning", LogLevel::kWarning},
                                                         {"error", LogLevel::kError}};
  const auto found = levels.find(name);
  return found == levels.end() ? LogLevel::kInfo : found->second;
}

int RunWorkerProgram(int argc, char** argv) {
  const WorkerEnvironment environment = {.token = Variable("MOESAIC_TOKEN"),
                                         .log_level = LevelNamed(Variable("MOESAIC_LOG_LEVEL"))};
  ConfigureLog("worker", environment.log_level);
  CLI::App program("Computes for moesaic, which starts it.", argv[0]);
  program.require_subcommand(1);
  int exit_code = kExitOk;
  RegisterTrain(program, environment, exit_code);
  RegisterGenerate(program, exit_code);
  RegisterEvaluate(program, exit_code);
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return exit_code;
}

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) { return moesaic::RunWorkerProgram(argc, argv); }
