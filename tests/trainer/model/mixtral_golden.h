// The golden files of tests/peers/make_mixtral_golden.py in this project's names and shapes.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <vector>

#include "trainer/catalog/parameter_catalog.h"

namespace moesaic {

// The resolved job of the golden model.
JobSpec GoldenJob();

// What Hugging Face keeps apart, under `prefix` + its names, put together as the catalogue has it:
// q, k and v rows of one matrix; w1 (gate) and w3 (up) rows of another. By parameter id.
std::vector<at::Tensor> FromHuggingFace(const ParameterCatalog& catalog,
                                        const std::map<std::string, at::Tensor>& tensors,
                                        const std::string& prefix);

}  // namespace moesaic
