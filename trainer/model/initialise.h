// Initial parameter values, as tensors (trainer/catalog/initial_values.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "trainer/catalog/parameter_catalog.h"

namespace moesaic {

// Fills `values` (fp32, contiguous) with elements [first, first + numel) of the parameter, counted
// row-major in its whole shape.
void Initialise(const ParameterSpec& parameter, uint64_t seed, int64_t first, at::Tensor& values);

}  // namespace moesaic
