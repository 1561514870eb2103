// A safetensors file of any bytes is refused or read; tensors that are read fill the file, and
// written again they are read the same.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "trainer/checkpoint/format/safetensors.h"

namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

class Bytes : public moesaic::ReadableFile {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint64_t size() const override { return size_; }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> bytes) const override {
    Require(offset <= size_ && bytes.size() <= size_ - offset);
    if (!bytes.empty()) std::memcpy(bytes.data(), data_ + offset, bytes.size());
    return absl::OkStatus();
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto header = moesaic::ReadSafetensorsHeader(Bytes(data, size));
  if (!header.ok()) return 0;
  uint64_t next = header->header_bytes;
  for (const moesaic::SafetensorsTensor& tensor : header->tensors) {
    Require(tensor.begin == next);
    next += tensor.bytes;
  }
  Require(next == size);
  std::vector<moesaic::SafetensorsTensor> tensors = header->tensors;
  const auto written = moesaic::LayOutSafetensors(&tensors, header->metadata);
  Require(written.ok());
  const auto again = moesaic::ParseSafetensorsHeader(
      absl::string_view(*written).substr(8), written->size() + (size - header->header_bytes));
  Require(again.ok() && again->tensors.size() == header->tensors.size());
  for (const moesaic::SafetensorsTensor& tensor : header->tensors) {
    const moesaic::SafetensorsTensor* same = again->Find(tensor.name);
    Require(same != nullptr && same->shape == tensor.shape && same->element == tensor.element);
  }
  return 0;
}
