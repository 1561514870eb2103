// A snapshot arena of any bytes is refused or mapped; one that is mapped has every object inside
// the file. The first byte chooses: 'r' raw bytes, anything else an index (its length in the next
// two bytes) to which the header that fits is added, so that its content is reached.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <span>
#include <string>

#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/snapshot_arena.h"

namespace {

std::string Header(const std::string& index) {
  const uint32_t version[2] = {2, 0};
  const uint64_t numbers[2] = {
      index.size(), moesaic::Xxh3Short(std::as_bytes(std::span<const char>(index)))};
  return "MOEARENA" + std::string(reinterpret_cast<const char*>(version), sizeof(version)) +
         std::string(reinterpret_cast<const char*>(numbers), sizeof(numbers));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  std::string bytes(reinterpret_cast<const char*>(data) + 3, size - 3);
  if (data[0] != 'r') {
    const size_t index = std::min<size_t>(bytes.size(), data[1] | data[2] << 8);
    bytes = Header(bytes.substr(0, index)) + bytes;
  }
  static const std::string path = "/dev/shm/moesaic-fuzz-arena." + std::to_string(getpid());
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  const auto reader = moesaic::SnapshotReader::Open(path);
  std::remove(path.c_str());
  if (!reader.ok()) return 0;
  for (int i = 0; i < (*reader)->index().objects_size(); ++i) {
    if ((*reader)->index().objects(i).bytes() > bytes.size()) std::abort();
    // Reads every byte: one outside the mapping is a crash.
    (*reader)
        ->Read(i, 0, UINT64_MAX,
               [](uint64_t, std::span<const std::byte>) { return absl::OkStatus(); })
        .IgnoreError();
  }
  return 0;
}
