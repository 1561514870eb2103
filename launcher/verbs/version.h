// moesaic version [--build]
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterVersion(CLI::App& program, VerbContext& context);

}  // namespace moesaic
