// Rules of JobSpec that are data in proto/job.proto (defaults, ranges, resume classes), applied by
// reflection; and the rules that cross fields. Pure: no files, no environment.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/job.pb.h"

namespace moesaic {

// Something wrong with a job, at a field path such as "model.moe.active" or "data.train[1].path"
// (empty: the whole job).
struct JobProblem {
  std::string path;
  std::string message;
};

// Fills every unset field that has a default, makes the messages that hold them (except model.moe,
// whose absence has a meaning), and chooses the default member of each oneof. Idempotent. Fields
// that mean "auto" when unset stay unset, save those that follow from others in the job: kv_heads,
// head_width, run.dir, checkpoint.dir.
void ApplyDefaults(JobSpec* spec);

// All problems of a spec: missing required fields, ranges, not-a-number, names, and the rules that
// cross fields (global_batch % micro_batch, active <= experts, heads % kv_heads, even head_width,
// dense_width where a layer is dense, renormalize with active 1, ...). Empty: valid. Call after
// ApplyDefaults. `known` are the paths of problems already reported: nothing is said about them or
// what is below them, and no rule that reads them runs.
std::vector<JobProblem> ValidateJob(const JobSpec& spec,
                                    const std::vector<std::string>& known = {});

// 128-bit hashes of the canonical serialisation of the fields of one resume class.
using JobHash = std::array<uint8_t, 16>;
struct JobHashes {
  JobHash identity;
  JobHash trajectory;
  JobHash operational;
};
JobHashes HashJob(const JobSpec& spec);

// Every field of class `resume` that differs: "model.hidden: 256 -> 512". A field is compared by its
// resolved value.
std::vector<std::string> DescribeChanges(const JobSpec& before, const JobSpec& after,
                                         ResumeClass resume);

// Whether layer `layer` has experts.
bool IsMoeLayer(const ModelSpec& model, int layer);

}  // namespace moesaic
