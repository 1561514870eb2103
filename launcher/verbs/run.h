// moesaic run: trains a job on this host, from start to end.
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterRun(CLI::App& program, VerbContext& context);

}  // namespace moesaic
