#include "launcher/verbs/job_flags.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace moesaic {
namespace {

std::string CheckResume(const std::string& text) {
  uint64_t step = 0;
  if (text == "auto" || text == "never" || absl::SimpleAtoi(text, &step)) return "";
  return "must be auto, never or a step number";
}

}  // namespace

void AddJobFlags(CLI::App* verb, JobFlags* flags) {
  verb->add_option("-f,--file", flags->file, "Job file (.yaml or .textproto)")->required();
  verb->add_option("--set", flags->sets, "Set one value: --set train.steps=10 (repeatable)")
      ->allow_extra_args(false);
}

void AddResumeFlag(CLI::App* verb, std::string* resume) {
  verb->add_option(
          "--resume", *resume,
          "auto: go on from the newest checkpoint, if there is one; never: start anew (old "
          "checkpoints are moved to .quarantine); or the step to go on from")
      ->check(CheckResume);
}

std::optional<LoadedJob> LoadJobOrFail(const JobFlags& flags, JobInputs inputs,
                                       VerbContext& context) {
  absl::StatusOr<JobText> text = ReadJobText(flags.file);
  if (!text.ok()) {
    Fail(text.status(), context);
    // A job file that is not there is a mistake of the command line.
    context.exit_code = kExitUsage;
    return std::nullopt;
  }
  JobSources sources;
  sources.text = *std::move(text);
  sources.environment = context.environment;
  sources.sets = flags.sets;
  sources.flags = flags.flags;
  sources.check_inputs = inputs == JobInputs::kAll;
  if (inputs != JobInputs::kIgnore) sources.vocabulary_of = context.vocabulary_of;
  absl::StatusOr<LoadedJob> job = LoadJob(sources);
  if (job.ok()) return *std::move(job);
  const std::string problems(job.status().message());
  const auto count = 1 + std::count(problems.begin(), problems.end(), '\n');
  context.err << problems << "\nmoesaic: refused " << flags.file << ": " << count
              << (count == 1 ? " problem\n" : " problems\n");
  context.exit_code = kExitUsage;
  return std::nullopt;
}

}  // namespace moesaic
