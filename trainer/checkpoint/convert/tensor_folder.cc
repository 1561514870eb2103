#include "trainer/checkpoint/convert/tensor_folder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

using Json = nlohmann::json;

constexpr char kSingleName[] = "model.safetensors";
constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr uint64_t kMaxConfigBytes = 1 << 20;
constexpr uint64_t kMaxIndexBytes = 64 << 20;

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t fraction = half & 0x3ff;
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  const uint32_t wide = exponent == 0x1f ? 0xff : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

void WidenHalves(ElementKind element, std::span<const std::byte> bytes, std::span<float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + 2 * i, sizeof(bits));
    values[i] = element == ELEMENT_F16 ? HalfToFloat(bits)
                                       : std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
}

uint64_t Elements(const SafetensorsTensor& tensor) {
  return tensor.bytes / ElementBytes(tensor.element);
}

absl::Status ReadFloats(const ReadableFile& file, const SafetensorsTensor& tensor, uint64_t begin,
                        std::span<float> values) {
  const uint64_t size = ElementBytes(tensor.element);
  const uint64_t at = tensor.begin + begin * size;
  if (tensor.element == ELEMENT_F32) return file.ReadAt(at, std::as_writable_bytes(values));
  std::vector<std::byte> bytes(values.size() * size);
  if (absl::Status read = file.ReadAt(at, bytes); !read.ok()) return read;
  WidenHalves(tensor.element, bytes, values);
  return absl::OkStatus();
}

// Tensors that carry nothing which is not elsewhere: tables of older writers, the copy of a tied
// head.
bool IsRedundant(const std::string& name, const JobSpec& spec) {
  return absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         (spec.model().tie_head() && name == "lm_head.weight");
}

bool IsReadable(ElementKind element) {
  return element == ELEMENT_F32 || element == ELEMENT_BF16 || element == ELEMENT_F16;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TensorFolder>> TensorFolder::Open(const Folder& folder,
                                                                 const std::string& job_name) {
  absl::StatusOr<std::string> config = ReadWholeFile(folder, kConfigName, kMaxConfigBytes);
  if (!config.ok()) return config.status();
  absl::StatusOr<DescribedModel> model = ReadConfig(*config, job_name);
  if (!model.ok()) return model.status();
  absl::StatusOr<ParameterCatalog> catalog = ParameterCatalog::Build(model->spec);
  if (!catalog.ok()) return catalog.status();
  std::unique_ptr<TensorFolder> tensors(
      new TensorFolder(*std::move(model), *std::move(catalog)));
  if (absl::Status added = tensors->AddFiles(folder); !added.ok()) return added;
  if (absl::Status found = tensors->FindParts(); !found.ok()) return found;
  if (absl::Status left = tensors->CheckNothingIsLeft(); !left.ok()) return left;
  return tensors;
}

absl::Status TensorFolder::AddFiles(const Folder& folder) {
  absl::StatusOr<std::string> index = ReadWholeFile(folder, kIndexName, kMaxIndexBytes);
  if (absl::IsNotFound(index.status())) return AddFile(folder, kSingleName);
  return index.ok() ? AddIndexed(folder, *index) : index.status();
}

absl::Status TensorFolder::AddIndexed(const Folder& folder, absl::string_view text) {
  absl::StatusOr<Json> index = ParseJsonObject(text, kIndexName);
  if (!index.ok()) return index.status();
  const auto map = index->find("weight_map");
  if (map == index->end() || !map->is_object()) {
    return absl::DataLossError(absl::StrCat(kIndexName, " has no weight_map"));
  }
  std::map<std::string, std::string> file_of;
  std::set<std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) return absl::DataLossError(absl::StrCat(kIndexName, ": ", tensor));
    file_of[tensor] = file.get<std::string>();
    files.insert(file_of[tensor]);
  }
  for (const std::string& file : files) {
    if (absl::Status added = AddFile(folder, file); !added.ok()) return added;
  }
  for (const auto& [tensor, file] : file_of) {
    if (!tensors_.contains(tensor)) {
      return absl::DataLossError(
          absl::StrCat(kIndexName, ": tensor ", tensor, " is not in ", file));
    }
  }
  return absl::OkStatus();
}

absl::Status TensorFolder::AddFile(const Folder& folder, const std::string& name) {
  absl::StatusOr<std::unique_ptr<ReadableFile>> file = folder.Open(name);
  if (!file.ok()) return file.status();
  absl::StatusOr<SafetensorsHeader> header = ReadSafetensorsHeader(**file);
  if (!header.ok()) {
    return absl::Status(header.status().code(),
                        absl::StrCat(folder.path(), "/", name, ": ", header.status().message()));
  }
  const std::shared_ptr<const ReadableFile> shared = *std::move(file);
  for (SafetensorsTensor& tensor : header->tensors) {
    const std::string tensor_name = tensor.name;
    if (!tensors_.try_emplace(tensor_name, Tensor{shared, std::move(tensor)}).second) {
      return absl::DataLossError(absl::StrCat("tensor ", tensor_name, " is in two files"));
    }
  }
  return absl::OkStatus();
}

absl::Status TensorFolder::FindParts() {
  for (const ParameterSpec& parameter : catalog_.parameters()) {
    absl::StatusOr<std::vector<const Tensor*>> parts = PartsOf(parameter);
    if (!parts.ok()) return parts.status();
    parts_[parameter.name] = *std::move(parts);
  }
  return absl::OkStatus();
}

// A parameter as the rows of its tensors, checked against the catalogue's shape.
absl::StatusOr<std::vector<const TensorFolder::Tensor*>> TensorFolder::PartsOf(
    const ParameterSpec& parameter) const {
  const std::vector<std::string> names = TensorsOf(*model_.architecture, parameter);
  std::vector<const Tensor*> parts;
  std::vector<uint64_t> stacked;
  for (const std::string& name : names) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor ", name, ", a part of ", parameter.name, ", is missing"));
    }
    const SafetensorsTensor& tensor = found->second.at;
    if (!IsReadable(tensor.element)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "tensor ", name, " is ", ElementName(tensor.element), "; F32, BF16 and F16 are read"));
    }
    if (stacked.empty()) {
      stacked = tensor.shape;
    } else if (!tensor.shape.empty() && tensor.shape.size() == stacked.size() &&
               std::equal(tensor.shape.begin() + 1, tensor.shape.end(), stacked.begin() + 1)) {
      stacked[0] += tensor.shape[0];
    }
    parts.push_back(&found->second);
  }
  const std::vector<uint64_t> shape(parameter.shape.begin(), parameter.shape.end());
  if (stacked != shape) {
    return absl::FailedPreconditionError(
        absl::StrCat("parameter ", parameter.name, " has shape ", DescribeShape(shape), " by ",
                     kConfigName, ", but ", absl::StrJoin(names, " + "), " make ",
                     DescribeShape(stacked)));
  }
  return parts;
}

absl::Status TensorFolder::CheckNothingIsLeft() const {
  std::set<const Tensor*> used;
  for (const auto& [parameter, parts] : parts_) used.insert(parts.begin(), parts.end());
  for (const auto& [name, tensor] : tensors_) {
    if (!used.contains(&tensor) && !IsRedundant(name, model_.spec)) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor ", name, " has no counterpart here"));
    }
  }
  return absl::OkStatus();
}

absl::Status TensorFolder::Read(ObjectKind kind, const ParameterSpec& parameter, uint64_t begin,
                                std::span<float> values) {
  const auto found = parts_.find(parameter.name);
  if (kind != MASTER || found == parts_.end()) {
    return absl::NotFoundError(absl::StrCat("the Hugging Face folder has no ",
                                            ObjectLabel(kind, parameter.name)));
  }
  for (const Tensor* part : found->second) {
    const uint64_t elements = Elements(part->at);
    if (begin >= elements) {
      begin -= elements;
      continue;
    }
    const size_t count = std::min<uint64_t>(elements - begin, values.size());
    absl::Status read = ReadFloats(*part->file, part->at, begin, values.first(count));
    if (!read.ok()) return read;
    values = values.subspan(count);
    begin = 0;
    if (values.empty()) break;
  }
  if (values.empty()) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("the range ends behind ", parameter.name));
}

}  // namespace moesaic
