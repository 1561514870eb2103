// A job back to text.
#pragma once

#include <string>

#include "launcher/config/job_draft.h"
#include "proto/job.pb.h"

namespace moesaic {

// The set fields as a job file; reading it gives `spec` again.
std::string WriteYaml(const JobSpec& spec);
// The same with the origin of each value as an aligned comment, and with unset fields as "auto".
std::string WriteYaml(const JobSpec& spec, const JobOrigins& origins);

std::string WriteTextproto(const JobSpec& spec);
// One object with the keys of the job file; numbers as numbers, durations and sizes as the job file
// writes them.
std::string WriteJson(const JobSpec& spec);

}  // namespace moesaic
