#include "tests/trainer/model/golden.h"

#include <filesystem>

#include "trainer/checkpoint/format/safetensors.h"

namespace moesaic {

std::map<std::string, at::Tensor> ReadGolden(const std::string& name) {
  const std::filesystem::path path = "tests/peers/golden/" + name;
  const auto folder = FileSystem::System().OpenFolder(path.parent_path());
  TORCH_CHECK(folder.ok(), folder.status().ToString());
  const auto file = (*folder)->Open(path.filename());
  TORCH_CHECK(file.ok(), file.status().ToString());
  const auto header = ReadSafetensorsHeader(**file);
  TORCH_CHECK(header.ok(), header.status().ToString());
  std::map<std::string, at::Tensor> tensors;
  for (const SafetensorsTensor& stored : header->tensors) {
    TORCH_CHECK(stored.element == ELEMENT_F32 || stored.element == ELEMENT_I64, stored.name);
    at::Tensor tensor = at::empty(std::vector<int64_t>(stored.shape.begin(), stored.shape.end()),
                                  stored.element == ELEMENT_F32 ? at::kFloat : at::kLong);
    const absl::Status read =
        (*file)->ReadAt(stored.begin, {static_cast<std::byte*>(tensor.data_ptr()), stored.bytes});
    TORCH_CHECK(read.ok(), read.ToString());
    tensors[stored.name] = tensor;
  }
  return tensors;
}

}  // namespace moesaic
