#include "launcher/verbs/agent.h"
#include "launcher/verbs/verb_list.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launcher/config/spelling.h"
#include "launcher/verbs/certs.h"
#include "launcher/verbs/chaos.h"
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/compute.h"
#include "launcher/verbs/config.h"
#include "launcher/verbs/coordinator.h"
#include "launcher/verbs/data.h"
#include "launcher/verbs/events.h"
#include "launcher/verbs/jobs.h"
#include "launcher/verbs/logs.h"
#include "launcher/verbs/node.h"
#include "launcher/verbs/plan.h"
#include "launcher/verbs/report.h"
#include "launcher/verbs/run.h"
#include "launcher/verbs/submit.h"
#include "launcher/verbs/version.h"

namespace moesaic {
namespace {

using RegisterVerb = void (*)(CLI::App& program, VerbContext& context);

// In the order of --help: one line a verb.
constexpr RegisterVerb kVerbs[] = {
    RegisterRun,
    RegisterSubmit,
    RegisterList,
    RegisterStatus,
    RegisterWait,
    RegisterLogs,
    RegisterEvents,
    RegisterStop,
    RegisterResize,
    RegisterNode,
    RegisterCoordinator,
    RegisterAgent,
    RegisterCkpt,
    RegisterCerts,
    RegisterChaos,
    RegisterConfig,
    RegisterData,
    RegisterEval,
    RegisterGenerate,
    RegisterPlan,
    RegisterReport,
    RegisterVersion,
};

// Empty when `arguments` starts with a verb or a flag.
std::string UnknownVerbMessage(const CLI::App& program, const std::vector<std::string>& arguments) {
  if (arguments.empty() || arguments[0].empty() || arguments[0][0] == '-') return "";
  std::vector<std::string> verbs;
  for (const CLI::App* verb : program.get_subcommands({})) verbs.push_back(verb->get_name());
  if (std::find(verbs.begin(), verbs.end(), arguments[0]) != verbs.end()) return "";
  const std::string nearest = Nearest(arguments[0], verbs);
  return absl::StrCat("moesaic: there is no verb \"", arguments[0], "\"",
                      nearest.empty() ? absl::StrCat("; there are ", absl::StrJoin(verbs, ", "))
                                      : absl::StrCat("; did you mean ", nearest, "?"),
                      "\n");
}

}  // namespace

int RunProgram(std::vector<std::string> arguments, VerbContext& context) {
  CLI::App program("Trains mixture-of-experts language models on machines that come, go and fail.",
                   "moesaic");
  program.require_subcommand(1);
  program.footer("'moesaic VERB --help' explains a verb and gives examples.");
  for (RegisterVerb register_verb : kVerbs) register_verb(program, context);
  const std::string unknown_verb = UnknownVerbMessage(program, arguments);
  if (!unknown_verb.empty()) {
    context.err << unknown_verb;
    return kExitUsage;
  }
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
