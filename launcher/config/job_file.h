// LoadJob: from everything a person said about a job to a resolved, valid JobSpec. Precedence, from
// low to high: defaults, job file, MOESAIC_* variables, --set, flags.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launcher/config/job_draft.h"
#include "proto/job.pb.h"

namespace moesaic {

struct JobText {
  std::string name;  // as problems name it: the path that was given
  std::string text;
  bool textproto = false;  // otherwise YAML
};

inline constexpr size_t kMaxJobFileBytes = size_t{1} << 20;

// Reads a job file; ".textproto" by its suffix. NotFound when there is none; InvalidArgument when
// it is not a regular file or larger than kMaxJobFileBytes.
absl::StatusOr<JobText> ReadJobText(const std::string& path);

// One flag that stands for a field: {"--nodes", "elastic.nodes.max", "4"}.
struct JobFlag {
  std::string flag;
  std::string path;
  std::string value;
};

struct JobSources {
  std::optional<JobText> text;
  std::map<std::string, std::string> environment;  // only MOESAIC_* matter
  std::vector<std::string> sets;                   // "a.b=c", in order
  std::vector<JobFlag> flags;
  // Number of tokens of a tokenizer file. Resolves model.vocabulary where it is auto, and proves a
  // given one large enough. Without it, model.vocabulary may stay unset.
  std::function<absl::StatusOr<uint32_t>(const std::string& tokenizer)> vocabulary_of;
  // Whether the files that the job reads must exist.
  bool check_inputs = false;
};

struct LoadedJob {
  JobSpec given;       // without defaults
  JobSpec spec;        // resolved and valid
  JobOrigins origins;  // of every set field of `spec`
};

// InvalidArgument carries every problem, one a line: "job.yaml:3:5: model.hidden: must be ...".
absl::StatusOr<LoadedJob> LoadJob(const JobSources& sources);

}  // namespace moesaic
