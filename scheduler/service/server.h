// CoordinatorServer: the coordinator's gRPC edge. Translation, and who may say what.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "scheduler/client/credentials.h"
#include "scheduler/service/coordinator.h"
#include "scheduler/service/submission_limits.h"

namespace moesaic {

// What may wait for a peer to read it.
struct QueueLimits {
  size_t messages = 20000;
  size_t bytes = 64 << 20;
};

struct ServerOptions {
  std::string listen = "127.0.0.1:0";  // port 0: any that is free
  std::optional<TlsIdentity> tls;
  // Plain text off loopback: whoever reaches the port may submit jobs, that is, run programs. It is
  // logged and shown in the status of every job.
  bool insecure = false;
  QueueLimits queue_limits;  // of each stream
  bool allow_chaos = false;  // InjectFault
  SubmissionLimits submissions;
};

class CoordinatorServer {
 public:
  // FailedPrecondition for plain text off loopback without `insecure`. `core` must outlive the
  // server.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(CoordinatorCore* core,
                                                                  const ServerOptions& options);
  // Ends all streams.
  virtual ~CoordinatorServer() = default;
  // "127.0.0.1:4711": `listen` with the port that it is.
  virtual const std::string& address() const = 0;
};

}  // namespace moesaic
