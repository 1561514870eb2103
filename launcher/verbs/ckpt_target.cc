#include "launcher/verbs/ckpt_target.h"

#include <unistd.h>

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "launcher/build_info.h"
#include "launcher/verbs/byte_progress.h"

namespace moesaic {

void AddCkptTarget(CLI::App* verb, CkptTarget* target, const char* what) {
  verb->add_option("PATH", target->path, what)->required();
  AddOutputFormat(verb, &target->format);
}

std::string StepPath(const std::string& path) {
  const size_t at = path.rfind('@');
  uint64_t step = 0;
  if (at == std::string::npos || at == 0 || !absl::SimpleAtoi(path.substr(at + 1), &step)) {
    return path;
  }
  return absl::StrCat(path.substr(0, at), "/", StepFolderName(step));
}

std::optional<NamedStep> StepOfFolder(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return std::nullopt;
  const std::string trimmed = path.substr(0, end + 1);
  const size_t slash = trimmed.rfind('/');
  const std::string name = slash == std::string::npos ? trimmed : trimmed.substr(slash + 1);
  const std::optional<uint64_t> step = ParseStepFolderName(name);
  if (!step) return std::nullopt;
  std::string root = slash == std::string::npos ? "." : trimmed.substr(0, slash);
  return NamedStep{root.empty() ? "/" : std::move(root), *step};
}

absl::StatusOr<NamedStep> ParseNamedStep(const std::string& path) {
  std::optional<NamedStep> named = StepOfFolder(StepPath(path));
  if (!named) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " names no step: give FOLDER/step-<N> or FOLDER@<step>"));
  }
  const absl::Status there = FileSystem::System().OpenFolder(named->root).status();
  if (!there.ok()) return there;
  return *std::move(named);
}

absl::StatusOr<OpenedStep> OpenStep(const std::string& path) {
  absl::StatusOr<StepFolder> step = OpenCheckpoint(&FileSystem::System(), StepPath(path));
  if (!step.ok()) return step.status();
  absl::StatusOr<Manifest> manifest = ReadManifest(*step->folder);
  if (!manifest.ok()) return manifest.status();
  return OpenedStep{*std::move(step), *std::move(manifest)};
}

std::string TimeText(int64_t unix_ns) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixNanos(unix_ns), absl::UTCTimeZone());
}

const char* ContentsText(bool weights_only) {
  return weights_only ? "weights" : "full";
}

uint64_t TotalBytes(const Manifest& manifest) {
  uint64_t bytes = 0;
  for (const StoredFile& file : manifest.files()) bytes += file.bytes();
  return bytes;
}

uint64_t ReusedBytes(const Manifest& manifest) {
  uint64_t bytes = 0;
  for (const StoredFile& file : manifest.files()) {
    if (file.has_written_at_step()) bytes += file.bytes();
  }
  return bytes;
}

std::string ShortBytes(uint64_t bytes) { return BytesForPeople(static_cast<int64_t>(bytes)); }

void PrintJson(const OrderedJson& json, VerbContext& context) {
  context.out << json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) << "\n";
}

void PrintMade(const CommittedStep& made, const std::string& told, const std::string& format,
               VerbContext& context) {
  if (format == "json") {
    return PrintJson({{"path", made.path}, {"step", made.step}, {"bytes", made.bytes}}, context);
  }
  context.out << made.path << "\n";
  context.err << told << "\n";
}

std::string ThisProgram() { return absl::StrCat(ThisBuild().version, " ", ThisBuild().commit); }

void WithByteProgress(const char* what, VerbContext& context,
                      const std::function<void(std::function<void(int64_t, int64_t)>)>& work) {
  ByteProgress progress(what, ::isatty(STDERR_FILENO) != 0, context.err, Clock::System());
  work([&](int64_t done, int64_t total) { progress.Update(done, total); });
}

}  // namespace moesaic
