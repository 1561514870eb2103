// Paths of a job that is sent to another host.
#pragma once

#include "proto/job.pb.h"

namespace moesaic {

// Relative paths of the job become absolute, seen from the current folder.
void MakePathsAbsolute(JobSpec* spec);

}  // namespace moesaic
