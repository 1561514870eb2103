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

  // Errors of all calls: FailedPrecondition (stale generation: exit 87), PermissionDenied (its
  // token), NotFound (its job is not there), Unavailable or DeadlineExceeded: the coordinator did
  // not answer for as long as health.orphan_grace allows. Until then calls are tried again.
  virtual absl::StatusOr<RankTable> GetRankTable() = 0;
  // Returns when every rank is ready. Aborted: the ranks differ, with the list (exit 88).
  virtual absl::Status Ready(const ReadyRequest& request, absl::Duration deadline) = 0;

  // Opens the progress stream, and opens it again, in the background, whenever it breaks: training
  // goes on without the coordinator. Reports are queued and never block the caller; when there are
  // too many, the oldest go. The newest Control is kept for LatestControl.
  virtual absl::Status StartProgress() = 0;
  virtual void Report(const StepReport& report) = 0;
  // What the coordinator said last; a default Control before it said anything. `abort` once it has
  // refused this worker.
  virtual Control LatestControl() const = 0;
  // Sends what is queued, snapshot reports first, and closes the stream.
  virtual absl::Status FinishProgress() = 0;

  // Sent in the background, in order. The newest is sent again to a coordinator that may have
  // forgotten it: after the stream broke, when the Control does not have its step.
  virtual void ReportSnapshot(const SnapshotReport& report) = 0;
};

struct CoordinatorAddress {
  std::string target;  // "127.0.0.1:4711"
  WorkerIdentity worker;
  std::optional<TlsIdentity> tls;
};

std::unique_ptr<CoordinatorClient> ConnectToCoordinator(CoordinatorAddress address);

}  // namespace moesaic
