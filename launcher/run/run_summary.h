// What is said of a job when its run is over.
#pragma once

#include <string>

#include "proto/coordinator.pb.h"

namespace moesaic {

// One line: {"job": ..., "state": ..., ...}. What is not known is null.
std::string SummaryJson(const JobStatus& status);
std::string SummaryText(const JobStatus& status);

// The exit code of `moesaic run`. `signal`: the first that interrupted it, 0 when none did: then a
// job that was stopped is 130 (SIGINT) or 143, unless steps could not be saved.
int RunExitCode(const JobStatus& status, int signal, bool killed);

}  // namespace moesaic
