// Lists of ranks as people write them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace moesaic {

// "0,3-5" -> 0, 3, 4, 5: ascending, each once. InvalidArgument says what is wrong; more than
// `limit` ranks are wrong, too.
absl::StatusOr<std::vector<uint32_t>> ParseRanks(const std::string& text, size_t limit);

}  // namespace moesaic
