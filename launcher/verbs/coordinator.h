// moesaic coordinator
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterCoordinator(CLI::App& program, VerbContext& context);

}  // namespace moesaic
