// Values that are laid over the job file: environment variables, --set and flags.
#pragma once

#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "launcher/config/job_draft.h"

namespace moesaic {

// Sets the field at `path` ("train.steps", "data.train[0].weight", "train.optimizer") to `text`:
// raw text for a scalar; YAML for a map or list ("{cosine: {final_factor: 0}}", "sgd"). An index
// equal to the number of elements adds one. Problems go to `draft`.
void SetAtPath(absl::string_view path, absl::string_view text, const ValueSource& source,
               JobDraft* draft);

// Lays every MOESAIC_* variable of `environment` over the job: MOESAIC_TRAIN__STEPS is train.steps
// (two underscores for a dot) and MOESAIC_DATA__TRAIN__0__PATH is data.train[0].path. A MOESAIC_*
// variable that is no field and not reserved (IsReservedVariable) is a problem.
void ApplyEnvironment(const std::map<std::string, std::string>& environment, JobDraft* draft);

// Whether `name` is a MOESAIC_* variable with a meaning of its own.
bool IsReservedVariable(absl::string_view name);

}  // namespace moesaic
