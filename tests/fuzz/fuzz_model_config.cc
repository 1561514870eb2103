// A config.json of any text is refused or gives a job; one that can be written back gives the same
// job again.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "proto/job_spec.h"
#include "trainer/checkpoint/convert/architecture.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto model = moesaic::ReadConfig(text, "fuzz");
  if (!model.ok()) return 0;
  // What an architecture reads it can write, and it alone.
  const auto architecture = moesaic::ArchitectureOf(model->spec);
  if (!architecture.ok() || *architecture != model->architecture) std::abort();
  const std::string config =
      moesaic::WriteConfig(model->spec, **architecture, moesaic::ELEMENT_F32);
  const auto again = moesaic::ReadConfig(config, "fuzz");
  if (!again.ok() ||
      !moesaic::DescribeChanges(model->spec, again->spec, moesaic::IDENTITY).empty()) {
    std::abort();
  }
  return 0;
}
