// The one command that an agent runs for another host: Open MPI's daemon, as mpirun 4.1 asks its
// remote shell for it. Nothing of it ever reaches a shell.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace moesaic {

// From what mpirun gives to its remote shell after the host: one word or several, quoted for a
// shell, maybe wrapped in the reading of ./.profile (which is dropped). The words of the command,
// unquoted. InvalidArgument for anything else that a shell would act on.
absl::StatusOr<std::vector<std::string>> ReadRemoteCommand(const std::vector<std::string>& words);

// "orted" and its arguments if each is one that mpirun passes, with a value of the form that it
// has; without those that only serve to start further daemons, so that this one starts none.
// InvalidArgument names the first that is not.
absl::StatusOr<std::vector<std::string>> CheckOrtedCommand(const std::vector<std::string>& words);

}  // namespace moesaic
