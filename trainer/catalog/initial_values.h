// Initial values of parameters.
#pragma once

#include <cstdint>
#include <span>

#include "trainer/catalog/parameter_catalog.h"

namespace moesaic {

// Fills `values` with the elements from `first` on of the parameter, counted row-major in its whole
// shape. Element i depends on (seed, parameter name, i) alone, so any rank can make any shard, and
// values do not depend on the layout. Thread-safe.
void FillInitial(const ParameterSpec& parameter, uint64_t seed, uint64_t first,
                 std::span<float> values);

}  // namespace moesaic
