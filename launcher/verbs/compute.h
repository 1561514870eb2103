// moesaic eval, moesaic generate: verbs that compute on tensors. They become moesaic-worker, which
// has LibTorch and knows their flags.
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterEval(CLI::App& program, VerbContext& context);
void RegisterGenerate(CLI::App& program, VerbContext& context);

}  // namespace moesaic
