// A small valid job file, to be changed by a test.
#pragma once

#include <string>

#include "absl/strings/str_replace.h"
#include "launcher/config/job_file.h"

namespace moesaic {

inline constexpr char kSmallJob[] =
    "name: small\n"                                                     // 1
    "model:\n"                                                          // 2
    "  layers: 4\n"                                                     // 3
    "  hidden: 64\n"                                                    // 4
    "  heads: 4\n"                                                      // 5
    "  sequence: 32\n"                                                  // 6
    "  vocabulary: 512\n"                                               // 7
    "  moe: {experts: 8, active: 2, expert_width: 96, pattern: all}\n"  // 8
    "data: {train: [{path: corpus/train}]}\n"                           // 9
    "train: {steps: 100, global_batch: 16, micro_batch: 4}\n";          // 10

inline JobSources YamlSources(std::string text) {
  JobSources sources;
  sources.text = JobText{"job.yaml", std::move(text), false};
  return sources;
}

// kSmallJob with one part replaced.
inline std::string SmallJobWith(const char* part, const std::string& by) {
  return absl::StrReplaceAll(kSmallJob, {{part, by}});
}

// The problems of a job, one a line; empty when it is valid.
inline std::string ProblemsOf(const JobSources& sources) {
  const absl::StatusOr<LoadedJob> job = LoadJob(sources);
  return job.ok() ? "" : std::string(job.status().message());
}

}  // namespace moesaic
