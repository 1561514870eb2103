// PeerService: what an agent serves to the shims of head agents, to workers and to peer agents
// (AgentService). Every call must name the generation that runs here, and its token.
#pragma once

#include <grpcpp/server.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "launcher/agent/generation_runner.h"
#include "proto/agent.grpc.pb.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

struct PeerServiceOptions {
  std::string listen = "127.0.0.1:0";  // port 0: any that is free
  std::optional<TlsIdentity> tls;
  bool insecure = false;  // plain text off loopback
};

// Thread-safe.
class PeerService : private AgentService::Service {
 public:
  // FailedPrecondition for plain text off loopback without `insecure`. `generations` must outlive
  // this.
  static absl::StatusOr<std::unique_ptr<PeerService>> Start(const PeerServiceOptions& options,
                                                            GenerationRunner* generations);
  // Ends all calls.
  ~PeerService() override;

  // `listen` with the port that it is.
  const std::string& address() const { return address_; }

 private:
  explicit PeerService(GenerationRunner* generations) : generations_(generations) {}

  grpc::Status RunDaemon(grpc::ServerContext* context, const RunDaemonRequest* request,
                         grpc::ServerWriter<DaemonOutput>* writer) override;

  GenerationRunner* const generations_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace moesaic
