// moesaic chaos: breaks things under a running job on purpose, and judges how it recovers.
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterChaos(CLI::App& program, VerbContext& context);

}  // namespace moesaic
