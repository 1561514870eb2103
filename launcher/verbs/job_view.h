// A job's status as people and scripts see it. The schema of the JSON: docs/cluster.md.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "launcher/verbs/listing.h"
#include "proto/coordinator.pb.h"

namespace moesaic {

Json StatusJson(const JobStatus& status, absl::Time now);
// Many lines; foreign text is escaped.
std::string StatusText(const JobStatus& status, absl::Time now);

Json EventJson(const JobEvent& event);
// One line without its end.
std::string EventText(const JobEvent& event);

// "4", or "2:4". False when it is neither, or min is above max or 0.
bool ParseNodeRange(const std::string& text, uint32_t* min_nodes, uint32_t* max_nodes);

}  // namespace moesaic
