#include "launcher/verbs/rank_list.h"

#include <fmt/format.h>

#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace moesaic {

absl::StatusOr<std::vector<uint32_t>> ParseRanks(const std::string& text, size_t limit) {
  std::set<uint32_t> ranks;
  const std::vector<std::string> parts = absl::StrSplit(text, ',');
  for (const std::string& part : parts) {
    const std::vector<std::string> ends = absl::StrSplit(part, '-');
    uint32_t first = 0;
    uint32_t last = 0;
    if (ends.size() > 2 || !absl::SimpleAtoi(ends.front(), &first) ||
        !absl::SimpleAtoi(ends.back(), &last) || first > last) {
      return absl::InvalidArgumentError(
          fmt::format("\"{}\" is not a list of ranks such as 0,3-5", text));
    }
    if (last - first >= limit || ranks.size() + (last - first) >= limit) {
      return absl::InvalidArgumentError(fmt::format("at most {} ranks at a time", limit));
    }
    for (uint32_t rank = first; rank <= last; ++rank) ranks.insert(rank);
  }
  return std::vector<uint32_t>(ranks.begin(), ranks.end());
}

}  // namespace moesaic
