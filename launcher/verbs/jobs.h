// moesaic list, status, stop, wait, resize
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterList(CLI::App& program, VerbContext& context);
void RegisterStatus(CLI::App& program, VerbContext& context);
void RegisterStop(CLI::App& program, VerbContext& context);
void RegisterWait(CLI::App& program, VerbContext& context);
void RegisterResize(CLI::App& program, VerbContext& context);

}  // namespace moesaic
