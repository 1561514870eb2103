// What other programs computed: the files of tests/peers/golden, which scripts of tests/peers make.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>

namespace moesaic {

// The tensors of one safetensors file, by its path below tests/peers/golden. TORCH_CHECKs.
std::map<std::string, at::Tensor> ReadGolden(const std::string& name);

}  // namespace moesaic
