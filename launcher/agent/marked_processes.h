// Processes that carry a variable in their environment: how an agent finds all that a generation
// started, whoever their parents and process groups are by now.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace moesaic {

// Living processes of this user with "NAME=VALUE" in the environment that they were started with.
std::vector<pid_t> FindMarked(const std::string& variable);

// Kills them (SIGKILL) and reaps those that became children of this process, until none is left.
// False when some still are after `limit`.
bool KillMarked(const std::string& variable, absl::Duration limit);

// Reaps children of this process whose program has this name: orphans of an mpirun that came to us
// as their sub-reaper. They have been killed; one may still be on its way out, so waits up to
// `limit`.
void ReapOrphans(const std::string& program, absl::Duration limit);

}  // namespace moesaic
