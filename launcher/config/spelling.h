// What somebody who wrote `word` may have meant.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace moesaic {

// The candidate with the smallest edit distance, the first of equals; empty when even that one is
// further away than a slip of the fingers (one edit, and one more for every three characters).
std::string Nearest(absl::string_view word, const std::vector<std::string>& candidates);

// Inserted, deleted and replaced characters between two words (Levenshtein).
int EditDistance(absl::string_view a, absl::string_view b);

}  // namespace moesaic
