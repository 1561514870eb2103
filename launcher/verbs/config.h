// moesaic config check | show
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterConfig(CLI::App& program, VerbContext& context);

}  // namespace moesaic
