// moesaic ckpt ls|show|verify|import: checkpoints as plain folders, without a coordinator.
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterCkpt(CLI::App& program, VerbContext& context);

}  // namespace moesaic
