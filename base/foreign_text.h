// Text that came from elsewhere: what may be a name, and how to show the rest.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace moesaic {

// Names of jobs and nodes: ^[a-z0-9][a-z0-9._-]{0,62}$ without "..". They become parts of paths.
bool IsName(absl::string_view text);

// InvalidArgument "... is not the name of a <kind>" unless IsName. For every edge that takes one.
absl::Status CheckName(absl::string_view kind, absl::string_view text);

// For a terminal or a log: control characters other than newline and tab (so no escape sequence
// gets through) are written as "\x1b". Bytes of UTF-8 stay, save those of U+0080 to U+009F.
std::string EscapeControls(absl::string_view text);

}  // namespace moesaic
