// Independent pieces of work on a few threads.
#pragma once

#include <functional>

#include "absl/status/status.h"

namespace moesaic {

// Calls `task` with 0..count-1, in that order of start, on up to `threads` threads (the caller's is
// one of them). After a failure no new task starts; returns the failure of the lowest number.
absl::Status RunTasks(int count, int threads, const std::function<absl::Status(int)>& task);

}  // namespace moesaic
