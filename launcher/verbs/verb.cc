#include "launcher/verbs/verb.h"

namespace moesaic {

ExitCode ExitCodeFor(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
      return kExitUsage;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return kExitPermission;
    case absl::StatusCode::kUnavailable:
      return kExitUnreachable;
    case absl::StatusCode::kDeadlineExceeded:
      return kExitTimedOut;
    case absl::StatusCode::kCancelled:
      return kExitCancelled;
    case absl::StatusCode::kDataLoss:
      return kExitCheckpointInvalid;
    case absl::StatusCode::kResourceExhausted:
      return kExitNoResources;
    default:
      return kExitJobFailed;
  }
}

void AddOutputFormat(CLI::App* verb, std::string* format) {
  verb->add_option("-o,--output", *format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->default_val("text");
}

void Fail(const absl::Status& status, VerbContext& context) {
  context.err << "moesaic: " << std::string(status.message()) << "\n";
  context.exit_code = ExitCodeFor(status);
}

}  // namespace moesaic
