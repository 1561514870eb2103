#include "launcher/worker/outcome.h"

#include <algorithm>
#include <iostream>
#include <string>
#include <thread>

namespace moesaic {

int SayFailure(const absl::Status& status) {
  std::cout.flush();
  std::cerr << "moesaic: " << std::string(status.message()) << "\n";
  switch (status.code()) {
    case absl::StatusCode::kNotFound: return kExitNotFound;
    case absl::StatusCode::kDataLoss: return kExitCheckpointInvalid;
    case absl::StatusCode::kPermissionDenied: return kExitPermission;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition: return kExitUsage;
    default: return kExitJobFailed;
  }
}

int ThreadsOrAll(int threads) {
  return threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace moesaic
