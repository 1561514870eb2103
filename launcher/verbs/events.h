// moesaic events
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterEvents(CLI::App& program, VerbContext& context);

}  // namespace moesaic
