// moesaic node ls|drain|cordon|uncordon
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterNode(CLI::App& program, VerbContext& context);

}  // namespace moesaic
