// moesaic report.
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterReport(CLI::App& program, VerbContext& context);

}  // namespace moesaic
