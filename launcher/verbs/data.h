// moesaic data tokenizer | prepare: from text files to what `data` of a job file names.
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterData(CLI::App& program, VerbContext& context);

}  // namespace moesaic
