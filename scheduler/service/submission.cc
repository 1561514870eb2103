#include "scheduler/service/submission.h"

#include <fmt/format.h>

#include "absl/strings/numbers.h"
#include "base/foreign_text.h"
#include "proto/job_spec.h"

namespace moesaic {
namespace {

bool IsResume(const std::string& text) {
  uint64_t step = 0;
  return text.empty() || text == "auto" || text == "never" || absl::SimpleAtoi(text, &step);
}

}  // namespace

absl::Status CheckSubmission(const SubmitJobRequest& request) {
  const size_t bytes = request.spec().ByteSizeLong();
  if (bytes > kMaxSpecBytes) {
    return absl::InvalidArgumentError(
        fmt::format("the job has {} bytes; it may have {}", bytes, kMaxSpecBytes));
  }
  const absl::Status named = CheckName("job", request.spec().name());
  if (!named.ok()) return named;
  if (!IsResume(request.resume())) {
    return absl::InvalidArgumentError("resume must be auto, never or a step number");
  }
  const std::vector<JobProblem> problems = ValidateJob(request.spec());
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{}: {}", problems[0].path, EscapeControls(problems[0].message)));
}

}  // namespace moesaic
