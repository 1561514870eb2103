// CoordinatorClient: all that a worker may know of the cluster. The gRPC implementation is in
// grpc_coordinator_client.cc; tests pass a fake.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/coordinator.pb.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

// Thread-safe.
class CoordinatorClient {
 public:
  virtual ~CoordinatorClient() = default;

  // Errors of all calls: Unavailable (coordinator unreachable), FailedPrecondition (stale
  // generation: exit 87), DeadlineExceeded.
  virtual absl::StatusOr<RankTable> GetRankTable() = 0;
  // Returns when every rank is ready. Aborted: the ranks differ, with the list (exit 88).
  virtual absl::Status Ready(const ReadyRequest& request, absl::Duration deadline) = 0;

  // Opens the progress stream. Reports are queued and never block the caller; the newest Control is
  // kept for LatestControl.
  virtual absl::Status StartProgress() = 0;
  virtual void Report(const StepReport& report) = 0;
  // What the coordinator said last; a default Control before it said anything.
  virtual Control LatestControl() const = 0;
  // Sends what is queued and closes the stream.
  virtual absl::Status FinishProgress() = 0;

  virtual absl::Status ReportSnapshot(const SnapshotReport& report) = 0;
};

struct CoordinatorAddress {
  std::string target;  // "127.0.0.1:4711"
  WorkerIdentity worker;
  std::optional<TlsIdentity> tls;
};

std::unique_ptr<CoordinatorClient> ConnectToCoordinator(CoordinatorAddress address);

}  // namespace moesaic
