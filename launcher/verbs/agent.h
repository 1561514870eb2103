// moesaic agent: what a host of the cluster runs.
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterAgent(CLI::App& program, VerbContext& context);

}  // namespace moesaic
