#include "launcher/agent/peer_service.h"

#include <fmt/format.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

absl::StatusOr<SnapshotRead> OpenRead(const SnapshotMemory& snapshots,
                                      const grpc::ByteBuffer& bytes) {
  grpc::ByteBuffer consumed = bytes;
  ReadSnapshotRequest request;
  const grpc::Status parsed =
      grpc::SerializationTraits<ReadSnapshotRequest>::Deserialize(&consumed, &request);
  if (!parsed.ok()) return FromGrpc(parsed);
  return snapshots.Read(request);
}

// A SnapshotBytes with this piece as its data; the memory is lent until the message is gone.
grpc::ByteBuffer Message(SnapshotPiece piece) {
  std::string head(1, static_cast<char>(SnapshotBytes::kDataFieldNumber << 3 | 2));
  for (uint64_t left = piece.bytes.size(); left > 0; left >>= 7) {
    head.push_back(static_cast<char>((left & 0x7f) | (left > 0x7f ? 0x80 : 0)));
  }
  auto* lender = new SnapshotPiece(std::move(piece));
  const grpc::Slice slices[] = {
      grpc::Slice(head),
      grpc::Slice(const_cast<std::byte*>(lender->bytes.data()), lender->bytes.size(),
                  [](void* lent) { delete static_cast<SnapshotPiece*>(lent); }, lender)};
  return grpc::ByteBuffer(slices, std::size(slices));
}

// One write at a time, each as soon as the caller has taken the one before.
class ReadReactor : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit ReadReactor(absl::StatusOr<SnapshotRead> read) : read_(std::move(read)) {
    if (read_.ok()) {
      Next();
    } else {
      Finish(ToGrpc(read_.status()));
    }
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      Next();
    } else {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the caller is gone"));
    }
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    std::optional<SnapshotPiece> piece = read_->Next();
    if (!piece) {
      Finish(grpc::Status::OK);
      return;
    }
    message_ = Message(*std::move(piece));
    StartWrite(&message_);
  }

  absl::StatusOr<SnapshotRead> read_;
  grpc::ByteBuffer message_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PeerService>> PeerService::Start(const PeerServiceOptions& options,
                                                                GenerationRunner* generations,
                                                                const SnapshotMemory* snapshots) {
  const absl::Status plain =
      CheckPlainText(options.listen, options.tls.has_value(), options.insecure);
  if (!plain.ok()) return plain;
  std::unique_ptr<PeerService> service(new PeerService(generations, snapshots));
  grpc::ServerBuilder builder;
  ConfigureServer(&builder);
  ConfigureForBulk(&builder);
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

grpc::ServerWriteReactor<grpc::ByteBuffer>* PeerService::ReadSnapshot(
    grpc::CallbackServerContext*, const grpc::ByteBuffer* request) {
  return new ReadReactor(OpenRead(*snapshots_, *request));
}

}  // namespace moesaic
