// A manifest of any bytes is refused or decoded; one that is decoded can be planned and proved
// without harm, and encodes to itself. The first byte chooses: 'r' raw bytes, anything else a
// message to which the trailer that fits is added, so that its content is reached.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/coverage.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/manifest.h"

namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] != 'r') bytes += moesaic::Sha256(bytes) + "MOEMANI1";
  const auto manifest = moesaic::DecodeManifest(bytes);
  if (!manifest.ok()) return 0;
  const auto again = moesaic::DecodeManifest(moesaic::EncodeManifest(*manifest));
  Require(again.ok() && again->SerializeAsString() == manifest->SerializeAsString());

  std::vector<moesaic::ExpectedObject> expected;
  for (const moesaic::StoredObject& object : manifest->objects()) {
    const moesaic::Shape shape = moesaic::AsShape(object.shape());
    expected.push_back(
        {object.kind(), object.name(), object.element(), {shape.begin(), shape.end()}});
    const moesaic::LoadTarget target = {object.kind(), object.name(), moesaic::WholeBox(shape)};
    const auto plan = moesaic::PlanLoad(*manifest, {&target, 1});
    if (!plan.ok()) continue;
    for (const moesaic::ShardRead& read : plan->reads) {
      const moesaic::StoredFile& file = manifest->files(static_cast<int>(read.shard.file()));
      Require(read.shard.begin() + read.shard.bytes() <= file.bytes());
    }
  }
  moesaic::FindCoverageProblems(expected, manifest->objects());
  return 0;
}
