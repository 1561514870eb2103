#include "launcher/agent/peer_service.h"

#include <fmt/format.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <utility>

#include "scheduler/client/channel.h"

namespace moesaic {

absl::StatusOr<std::unique_ptr<PeerService>> PeerService::Start(const PeerServiceOptions& options,
                                                                GenerationRunner* generations,
                                                                const SnapshotMemory* snapshots) {
  const absl::Status plain =
      CheckPlainText(options.listen, options.tls.has_value(), options.insecure);
  if (!plain.ok()) return plain;
  std::unique_ptr<PeerService> service(new PeerService(generations, snapshots));
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

grpc::Status PeerService::GetSnapshotIndex(grpc::ServerContext*, const SnapshotRef* snapshot,
                                           SnapshotIndex* index) {
  absl::StatusOr<SnapshotIndex> found = snapshots_->Index(*snapshot);
  if (!found.ok()) return ToGrpc(found.status());
  *index = *std::move(found);
  return grpc::Status::OK;
}

// Write waits while the caller is slow: no more than a piece is in memory here.
grpc::Status PeerService::ReadSnapshot(grpc::ServerContext*, const ReadSnapshotRequest* request,
                                       grpc::ServerWriter<SnapshotBytes>* writer) {
  return ToGrpc(snapshots_->Read(
      *request, [writer](const SnapshotBytes& piece) { return writer->Write(piece); }));
}

}  // namespace moesaic
