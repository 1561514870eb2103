#include "launcher/verbs/compute.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"

namespace moesaic {
namespace {

// Replaces this process by `moesaic-worker VERB arguments...`; returns only when it cannot.
void BecomeWorker(const std::string& verb, std::vector<std::string> arguments,
                  VerbContext& context) {
  const std::string worker =
      std::filesystem::path(context.program_path).replace_filename("moesaic-worker").string();
  arguments.insert(arguments.begin(), {"moesaic", verb});
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  context.out.flush();
  execv(worker.c_str(), argv.data());
  Fail(absl::NotFoundError(absl::StrCat("cannot start ", worker, ": ", std::strerror(errno),
                                        "; build it: cmake --build --preset release")),
       context);
}

void RegisterWorkerVerb(const char* verb, const char* description, CLI::App& program,
                        VerbContext& context) {
  CLI::App* app = program.add_subcommand(verb, description);
  app->set_help_flag();  // the worker's
  app->prefix_command();
  app->callback([app, verb, &context] { BecomeWorker(verb, app->remaining(), context); });
}

}  // namespace

void RegisterEval(CLI::App& program, VerbContext& context) {
  RegisterWorkerVerb("eval", "Validation loss and perplexity of a checkpoint", program, context);
}

void RegisterGenerate(CLI::App& program, VerbContext& context) {
  RegisterWorkerVerb("generate", "Write text from a checkpoint", program, context);
}

}  // namespace moesaic
