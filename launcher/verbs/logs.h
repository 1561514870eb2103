// moesaic logs
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterLogs(CLI::App& program, VerbContext& context);

}  // namespace moesaic
