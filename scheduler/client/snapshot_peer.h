// SnapshotPeer: snapshots in another host's memory, read over its agent's service. The gRPC kind is
// in snapshot_peer.cc; tests pass their own.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/agent.pb.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

// Thread-safe: several calls may go on at once.
class SnapshotPeer {
 public:
  virtual ~SnapshotPeer() = default;
  // Errors of both: Unavailable and DeadlineExceeded (the host is away or silent),
  // FailedPrecondition ("stale generation": it does not know the asking generation, or its token is
  // another), NotFound (it does not hold this snapshot), DataLoss (no sense in what came).
  virtual absl::StatusOr<SnapshotIndex> Index(const SnapshotRef& snapshot) = 0;
  // Gives the ranges' bytes, one after another in pieces of any size. Ranges are of whole chunks of
  // the snapshot, so that the caller can check what comes against the index: nobody else does. An
  // error of the sink ends the call and is returned.
  using Sink = std::function<absl::Status(std::span<const std::byte> bytes)>;
  virtual absl::Status Read(const ReadSnapshotRequest& request, const Sink& sink) = 0;
};

// Over gRPC, to the AgentService at `address`. Does not connect yet. A host that does not answer is
// Unavailable or DeadlineExceeded after some seconds; an agent that has not yet heard of the asking
// generation is asked again for as long.
std::unique_ptr<SnapshotPeer> ConnectToSnapshotPeer(const std::string& address,
                                                    const std::optional<TlsIdentity>& tls);

using SnapshotPeerFactory =
    std::function<std::unique_ptr<SnapshotPeer>(const std::string& address)>;

}  // namespace moesaic
