// moesaic submit
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterSubmit(CLI::App& program, VerbContext& context);

}  // namespace moesaic
