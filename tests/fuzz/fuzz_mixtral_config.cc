// A config.json of any text is refused or gives a job; one that can be written back gives the same
// job again.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "proto/job_spec.h"
#include "trainer/checkpoint/format/export_mixtral.h"
#include "trainer/checkpoint/format/import_mixtral.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto spec = moesaic::JobOfMixtralConfig(text, "fuzz");
  if (!spec.ok()) return 0;
  const auto config = moesaic::MixtralConfigOf(*spec, moesaic::ELEMENT_F32);
  if (!config.ok()) return 0;
  const auto again = moesaic::JobOfMixtralConfig(*config, "fuzz");
  if (!again.ok() || !moesaic::DescribeChanges(*spec, *again, moesaic::IDENTITY).empty()) {
    std::abort();
  }
  return 0;
}
