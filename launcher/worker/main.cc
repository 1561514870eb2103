// The `moesaic-worker` program: one rank of a training job, or a verb that computes on tensors.
// People use `moesaic`, which starts it.
#include <signal.h>
#include <unistd.h>

#include <iostream>
#include <map>
#include <string>

#include "base/exit_codes.h"
#include "base/log.h"
#include "launcher/environment.h"
#include "launcher/worker/evaluate.h"
#include "launcher/worker/generate.h"
#include "launcher/worker/train.h"

namespace moesaic {
namespace {

LogLevel LevelNamed(const std::string& name) {
  static const std::map<std::string, LogLevel> levels = {{"debug", LogLevel::kDebug},
                                                         {"warning", LogLevel::kWarning},
                                                         {"error", LogLevel::kError}};
  const auto found = levels.find(name);
  return found == levels.end() ? LogLevel::kInfo : found->second;
}

// For chaos runs (launcher/agent/fault_injection.h): an end from wherever the rank is.
void EndAtSignal(int, siginfo_t* info, void*) { _exit(info->si_value.sival_int); }

void LetChaosEndThis() {
  struct sigaction action = {};
  action.sa_sigaction = EndAtSignal;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGRTMIN, &action, nullptr);
}

int RunWorkerProgram(int argc, char** argv) {
  std::map<std::string, std::string> variables = ProcessEnvironment();
  const WorkerEnvironment environment = {.token = variables["MOESAIC_TOKEN"],
                                         .log_level = LevelNamed(variables["MOESAIC_LOG_LEVEL"]),
                                         .tls = TlsFilesFrom(variables),
                                         .run_folder = variables["MOESAIC_RUN_FOLDER"]};
  ConfigureLog("worker", environment.log_level);
  if (variables["MOESAIC_CHAOS"] == "1") LetChaosEndThis();
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
