// moesaic plan: the layout that the coordinator would choose, and what it needs.
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterPlan(CLI::App& program, VerbContext& context);

}  // namespace moesaic
