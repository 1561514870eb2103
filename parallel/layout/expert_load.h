// ExpertLoad: tokens that each expert takes in a step, as recorded or assumed.
#pragma once

#include <vector>

namespace moesaic {

// [layer][expert]: mean tokens a step over all ranks; a dense layer's list is empty. No layers at
// all: nothing is recorded, and every expert is expected to take the same.
using ExpertLoad = std::vector<std::vector<double>>;

}  // namespace moesaic
