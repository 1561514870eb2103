// A job file of any bytes is refused or loaded; one that loads is written back to the same job.
// The first byte chooses: 't' textproto, anything else YAML.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "launcher/config/job_file.h"
#include "launcher/config/job_writer.h"

namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

moesaic::JobSources SourcesOf(std::string text, bool textproto) {
  moesaic::JobSources sources;
  sources.text = moesaic::JobText{"job", std::move(text), textproto};
  return sources;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const bool textproto = data[0] == 't';
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto job = moesaic::LoadJob(SourcesOf(text, textproto));
  if (!job.ok()) {
    Require(!job.status().message().empty());
    return 0;
  }
  const auto again =
      moesaic::LoadJob(SourcesOf(moesaic::WriteYaml(job->spec, job->origins), false));
  Require(again.ok());
  Require(again->spec.SerializeAsString() == job->spec.SerializeAsString());
  return 0;
}
