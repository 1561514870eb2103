#include "launcher/verbs/verb_list.h"

#include <algorithm>

#include "launcher/verbs/version.h"

namespace moesaic {
namespace {

using RegisterVerb = void (*)(CLI::App& program, VerbContext& context);

// In the order of --help: one line a verb.
constexpr RegisterVerb kVerbs[] = {
    RegisterVersion,
};

}  // namespace

int RunProgram(std::vector<std::string> arguments, VerbContext& context) {
  CLI::App program("Trains mixture-of-experts language models on machines that come, go and fail.",
                   "moesaic");
  program.require_subcommand(1);
  program.footer("'moesaic VERB --help' explains a verb and gives examples.");
  for (RegisterVerb register_verb : kVerbs) register_verb(program, context);
  try {
    // CLI11 takes the arguments from the back.
    std::reverse(arguments.begin(), arguments.end());
    program.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    const bool is_help = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success);
    program.exit(error, context.out, context.err);
    return is_help ? kExitOk : kExitUsage;
  }
  return context.exit_code;
}

}  // namespace moesaic
