// Processes that carry a variable in their environment: how an agent finds all that a generation
// started, whoever their parents and process groups are by now.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace moesaic {

// Living processes of this user that were started with `variable` ("NAME=PATH") in the environment,
// or with a path below that one.
std::vector<pid_t> FindMarked(const std::string& variable);

// Kills them (SIGKILL) and reaps those that became children of this process, until none is left.
// False when some still are after `limit`.
bool KillMarked(const std::string& variable, absl::Duration limit);

// Reaps children of this process whose programs have these names (paths are cut to them): orphans
// of an mpirun or orted that came to us as their sub-reaper. They have been killed; one may still
// be on its way out, so waits up to `limit`.
void ReapOrphans(const std::vector<std::string>& programs, absl::Duration limit);

}  // namespace moesaic
