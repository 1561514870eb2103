#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

// moesaic certs init|show: the certificates of a cluster (docs/secure.md).
void RegisterCerts(CLI::App& program, VerbContext& context);

}  // namespace moesaic
