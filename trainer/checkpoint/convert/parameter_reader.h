// ParameterReader: the fp32 values of a model's parameters, by range, in whatever folder they lie.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "proto/checkpoint.pb.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/format/object_reader.h"
#include "trainer/checkpoint/format/shard_files.h"

namespace moesaic {

// Elements that are held at a time, where a parameter passes through.
inline constexpr uint64_t kChunkElements = 1 << 20;

// Thread-compatible.
class ParameterReader {
 public:
  virtual ~ParameterReader() = default;

  // Fills `values` with the elements from `begin` on, row-major in the parameter's whole shape: of
  // its master, or of a moment. NotFound: it is not there.
  virtual absl::Status Read(ObjectKind kind, const ParameterSpec& parameter, uint64_t begin,
                            std::span<float> values) = 0;
};

// Of a checkpoint; no checksum is looked at (ObjectReader).
class CheckpointParameters : public ParameterReader {
 public:
  CheckpointParameters(const Folder* step, const Manifest* manifest) : objects_(step, manifest) {}
  absl::Status Read(ObjectKind kind, const ParameterSpec& parameter, uint64_t begin,
                    std::span<float> values) override;

 private:
  ObjectReader objects_;
};

// A whole object of the parameter's shape; `produce` is for the caller to set.
ShardSource ShardOf(ObjectKind kind, const ParameterSpec& parameter);

// Calls fill(begin, values) for each piece of [0, elements) in order, and passes the values on.
absl::Status StreamChunks(
    uint64_t elements, const ByteSink& sink,
    const std::function<absl::Status(uint64_t begin, std::span<float> values)>& fill);

}  // namespace moesaic
