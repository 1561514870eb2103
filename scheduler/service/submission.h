// What the coordinator takes from a submitter: who it is was checked before; this is what it sends.
#pragma once

#include "absl/status/status.h"
#include "proto/coordinator.pb.h"

namespace moesaic {

inline constexpr size_t kMaxSpecBytes = 1 << 20;

// InvalidArgument unless the spec is resolved, valid and at most kMaxSpecBytes, its name may be
// part of a path, and `resume` is one of its forms.
absl::Status CheckSubmission(const SubmitJobRequest& request);

}  // namespace moesaic
