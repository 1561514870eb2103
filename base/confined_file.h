// Opening files whose names came from elsewhere.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace moesaic {

// Opens for reading the regular file at `path` (relative, of several parts) below the folder
// `root`. No part of it may be a symbolic link or lead out of `root`; a FIFO, socket, device or
// folder is refused, and opening one never blocks. The caller closes the descriptor.
// InvalidArgument (absolute, "..", empty), NotFound, FailedPrecondition (a link, or no regular
// file), PermissionDenied, Unavailable; all name the file. `root` itself is trusted.
absl::StatusOr<int> OpenConfined(const std::string& root, const std::string& path);

// Without openat2(2), part by part: for kernels that lack it, where OpenConfined does this; and for
// tests.
absl::StatusOr<int> OpenConfinedByParts(const std::string& root, const std::string& path);

}  // namespace moesaic
