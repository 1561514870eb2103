// A job written as protobuf text, with the same places and problems as YAML.
#pragma once

#include <string>

#include "launcher/config/job_draft.h"

namespace moesaic {

// Reads `text` into the draft. Whole numbers in octal or hexadecimal, which protobuf's own reader
// takes, are refused; durations are seconds here.
void BindTextproto(const std::string& text, const ValueSource& source, JobDraft* draft);

}  // namespace moesaic
