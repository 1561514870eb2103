// The golden files of tests/peers/make_model_goldens.py in this project's names and shapes.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <vector>

#include "trainer/catalog/parameter_catalog.h"

namespace moesaic {

// The resolved job of an architecture's golden model, written by hand.
JobSpec GoldenJob(const std::string& architecture);

// What Hugging Face keeps apart, under `prefix` + its names, put together as the catalogue has it:
// q, k and v rows of one matrix; gate and up rows of another. By parameter id; undefined where
// `tensors` has nothing (gradients of what is not learnt).
std::vector<at::Tensor> FromHuggingFace(const std::string& architecture,
                                        const ParameterCatalog& catalog,
                                        const std::map<std::string, at::Tensor>& tensors,
                                        const std::string& prefix);

}  // namespace moesaic
