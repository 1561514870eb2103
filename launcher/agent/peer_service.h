// PeerService: what an agent serves to the shims of head agents, to workers and to peer agents
// (AgentService). Every call must name the generation that runs here, and its token.
#pragma once

#include <grpcpp/server.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "launcher/agent/generation_runner.h"
#include "launcher/agent/snapshot_memory.h"
#include "proto/agent.grpc.pb.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

struct PeerServiceOptions {
  std::string listen = "127.0.0.1:0";  // port 0: any that is free
  std::optional<TlsIdentity> tls;
  bool insecure = false;  // plain text off loopback
};

// Thread-safe. A snapshot's bytes go from its memory to the socket without a copy here, which is
// why ReadSnapshot is served as bytes and not as a message.
class PeerService
    : private AgentService::WithRawCallbackMethod_ReadSnapshot<AgentService::Service> {
 public:
  // FailedPrecondition for plain text off loopback without `insecure`. `generations` and
  // `snapshots` must outlive this.
  static absl::StatusOr<std::unique_ptr<PeerService>> Start(const PeerServiceOptions& options,
                                                            GenerationRunner* generations,
                                                            const SnapshotMemory* snapshots);
  // Ends all calls.
  ~PeerService() override;

  // `listen` with the port that it is.
  const std::string& address() const { return address_; }

 private:
  PeerService(GenerationRunner* generations, const SnapshotMemory* snapshots)
      : generations_(generations), snapshots_(snapshots) {}

  grpc::Status RunDaemon(grpc::ServerContext* context, const RunDaemonRequest* request,
                         grpc::ServerWriter<DaemonOutput>* writer) override;
  grpc::Status GetSnapshotIndex(grpc::ServerContext* context, const SnapshotRef* snapshot,
                                SnapshotIndex* index) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* ReadSnapshot(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;

  GenerationRunner* const generations_;
  const SnapshotMemory* const snapshots_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace moesaic
