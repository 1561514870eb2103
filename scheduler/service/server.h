// CoordinatorServer: the coordinator's gRPC edge. Translation only.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "scheduler/service/coordinator.h"

namespace moesaic {

class CoordinatorServer {
 public:
  // Listens on loopback only: what is said is plain text, and whoever connects may submit jobs.
  // Port 0: any that is free. `core` must outlive the server.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(CoordinatorCore* core, int port);
  // Ends all streams.
  virtual ~CoordinatorServer() = default;
  // "127.0.0.1:4711"
  virtual const std::string& address() const = 0;
};

}  // namespace moesaic
