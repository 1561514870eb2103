// How a verb of moesaic-worker says that it failed.
#pragma once

#include "absl/status/status.h"
#include "base/exit_codes.h"

namespace moesaic {

// Writes "moesaic: <message>" to stderr; returns the exit code of docs/exit-codes.md.
int SayFailure(const absl::Status& status);

// `threads`, or the cores of this host when it is 0.
int ThreadsOrAll(int threads);

}  // namespace moesaic
