// Which network of this host an address belongs to.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace moesaic {

// "10.0.3.0/24" for "10.0.3.7", a name or number of one of this host's IPv4 addresses. NotFound
// when no interface has it.
absl::StatusOr<std::string> SubnetOf(const std::string& host);

// "10.0.3.7" of "10.0.3.7:4711"; "::1" of "[::1]:4711".
std::string HostOf(const std::string& address);

}  // namespace moesaic
