#include "launcher/agent/peer_service.h"

#include <fmt/format.h>
#include <grpcpp/server_builder.h>

#include <chrono>

#include "scheduler/client/channel.h"

namespace moesaic {

absl::StatusOr<std::unique_ptr<PeerService>> PeerService::Start(const PeerServiceOptions& options,
                                                                GenerationRunner* generations) {
  const absl::Status plain =
      CheckPlainText(options.listen, options.tls.has_value(), options.insecure);
  if (!plain.ok()) return plain;
  std::unique_ptr<PeerService> service(new PeerService(generations));
  grpc::ServerBuilder builder;
  ConfigureServer(&builder);
  int port = 0;
  builder.AddListeningPort(options.listen, ServerCredentials(options.tls), &port);
  builder.RegisterService(service.get());
  service->server_ = builder.BuildAndStart();
  if (service->server_ == nullptr || port == 0) {
    return absl::UnavailableError(fmt::format("cannot listen on {}", options.listen));
  }
  const std::string host = options.listen.substr(0, options.listen.rfind(':'));
  service->address_ = fmt::format("{}:{}", host, port);
  return service;
}

PeerService::~PeerService() {
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
}

grpc::Status PeerService::RunDaemon(grpc::ServerContext* context, const RunDaemonRequest* request,
                                    grpc::ServerWriter<DaemonOutput>* writer) {
  return ToGrpc(generations_->ServeDaemon(
      *request, [&](const DaemonOutput& output) { return writer->Write(output); },
      [&] { return context->IsCancelled(); }));
}

}  // namespace moesaic
