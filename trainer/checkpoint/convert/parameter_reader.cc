#include "trainer/checkpoint/convert/parameter_reader.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {

absl::Status CheckpointParameters::Read(ObjectKind kind, const ParameterSpec& parameter,
                                        uint64_t begin, std::span<float> values) {
  const StoredObject* object = objects_.Find(kind, parameter.name);
  if (object == nullptr || object->element() != ELEMENT_F32) {
    return absl::NotFoundError(absl::StrCat("the checkpoint has no fp32 object ",
                                            ObjectLabel(kind, parameter.name)));
  }
  return objects_.Read(*object, begin, begin + values.size(), std::as_writable_bytes(values));
}

ShardSource ShardOf(ObjectKind kind, const ParameterSpec& parameter) {
  ShardSource source;
  source.kind = kind;
  source.name = parameter.name;
  source.shape.assign(parameter.shape.begin(), parameter.shape.end());
  source.box = WholeBox(source.shape);
  source.layer = parameter.expert < 0 ? -1 : parameter.layer;
  source.expert = parameter.expert;
  return source;
}

absl::Status StreamChunks(
    uint64_t elements, const ByteSink& sink,
    const std::function<absl::Status(uint64_t begin, std::span<float> values)>& fill) {
  std::vector<float> values;
  for (uint64_t begin = 0; begin < elements; begin += values.size()) {
    values.resize(std::min(kChunkElements, elements - begin));
    if (absl::Status filled = fill(begin, values); !filled.ok()) return filled;
    absl::Status sent = sink(std::as_bytes(std::span<const float>(values)));
    if (!sent.ok()) return sent;
  }
  return absl::OkStatus();
}

}  // namespace moesaic
