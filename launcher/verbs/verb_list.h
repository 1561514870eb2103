// The verbs of the `moesaic` program, and how a command line reaches one.
#pragma once

#include <string>
#include <vector>

#include "launcher/verbs/verb.h"

namespace moesaic {

// Runs the verb that `arguments` (without the program's name) names; returns the exit code. Help
// goes to context.out and is success; a wrong command line is kExitUsage.
int RunProgram(std::vector<std::string> arguments, VerbContext& context);

}  // namespace moesaic
