// FaultEdge: InjectFault of a coordinator that was started with --allow-chaos. Passes faults of
// ranks and nodes on to their agents; those of the coordinator and of checkpoints it does itself.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "proto/coordinator.pb.h"
#include "scheduler/service/coordinator.h"

namespace moesaic {

// Thread-safe.
class FaultEdge {
 public:
  // `core` must outlive this.
  FaultEdge(CoordinatorCore* core, bool allowed) : core_(core), allowed_(allowed) {}

  // What was done, in words. PermissionDenied when chaos is not allowed; NotFound: no such job,
  // rank, node or checkpoint. KILL of the coordinator does not return.
  absl::StatusOr<std::string> Inject(const InjectFaultRequest& request) const;

 private:
  absl::StatusOr<std::string> SendToRank(const InjectFaultRequest& request) const;
  absl::StatusOr<std::string> SendToNode(const InjectFaultRequest& request) const;

  CoordinatorCore* const core_;
  const bool allowed_;
};

// Flips one bit of one file of a step folder, both chosen by `seed`. Says which.
absl::StatusOr<std::string> CorruptCheckpoint(const std::string& step_folder, uint64_t seed);

}  // namespace moesaic
