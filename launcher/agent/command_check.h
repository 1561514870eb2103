// What an agent takes from its coordinator before it acts: names that are names, and paths of
// snapshots that lie in the agent's own folder.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/agent.pb.h"

namespace moesaic {

// InvalidArgument names what is wrong. `folder`: the agent's, where its jobs' snapshots are.
absl::Status CheckCommand(const AgentCommand& command, const std::string& folder);

// The part of an arena's path below the agent's folder: "<job>/<file>". InvalidArgument for any
// other form.
absl::StatusOr<std::string> ArenaBelow(const std::string& folder, const std::string& job,
                                       const std::string& path);

}  // namespace moesaic
