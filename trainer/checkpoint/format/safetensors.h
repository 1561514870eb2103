// safetensors: 8 bytes little-endian header length, a JSON header, raw tensors. No code can hide in
// it, and every machine-learning tool reads it.
// https://huggingface.co/docs/safetensors/index#format
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/checkpoint.pb.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

inline constexpr uint64_t kMaxSafetensorsHeader = 64ull << 20;

// One tensor; `begin` and `bytes` count from the start of the file.
struct SafetensorsTensor {
  std::string name;
  ElementKind element = ELEMENT_UNSPECIFIED;
  std::vector<uint64_t> shape;
  uint64_t begin = 0;
  uint64_t bytes = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;  // by place in the file
  std::map<std::string, std::string> metadata;
  uint64_t header_bytes = 0;  // where the first tensor begins

  // Null when there is none of that name.
  const SafetensorsTensor* Find(absl::string_view name) const;
};

// Parses the JSON of a file of `file_bytes` bytes. DataLoss unless every tensor has a known element
// kind, `bytes` equal to what element kind and shape say, and the tensors fill the file after the
// header without holes or overlaps; and no name or key comes twice.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json,
                                                         uint64_t file_bytes);

// Reads and parses the header of an open file. Errors as above; the caller adds the file's name.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const ReadableFile& file);

// The first bytes of a file that holds these tensors one after another in this order: the length
// and the JSON, padded with spaces so that tensors begin at a multiple of 64 bytes. Fills in
// `begin` and `bytes`. InvalidArgument when a name comes twice or sizes overflow; ResourceExhausted
// when the header would be larger than the cap.
absl::StatusOr<std::string> LayOutSafetensors(std::vector<SafetensorsTensor>* tensors,
                                              const std::map<std::string, std::string>& metadata);

}  // namespace moesaic
