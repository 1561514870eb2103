#include "scheduler/client/snapshot_peer.h"

#include <fmt/format.h>
#include <grpcpp/generic/generic_stub.h>

#include <array>
#include <atomic>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "proto/agent.grpc.pb.h"
#include "scheduler/certs/certificate.h"
#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

constexpr absl::Duration kAnswerDeadline = absl::Seconds(5);
// What the slowest network that is of use delivers.
constexpr double kLeastBytesPerSecond = 8 << 20;
// Reads take turns on so many: the bytes of one connection are encrypted on one core at each end.
// Those that are not needed are not made.
constexpr size_t kConnections = 4;
constexpr absl::Duration kAskAgain = absl::Milliseconds(50);
constexpr char kReadMethod[] = "/moesaic.AgentService/ReadSnapshot";
constexpr uint64_t kDataTag = SnapshotBytes::kDataFieldNumber << 3 | 2;
constexpr char kNoPiece[] = "an answer is no piece of a snapshot";

// One call of ReadSnapshot whose answers are taken as the bytes that came, in slices, without a
// copy into messages. Thread-compatible.
class BytesCall {
 public:
  BytesCall(std::shared_ptr<grpc::Channel> channel, const std::string& method,
            absl::Duration deadline)
      : stub_(std::move(channel)) {
    SetDeadline(&context_, deadline);
    call_ = stub_.PrepareCall(&context_, method, &queue_);
  }
  ~BytesCall() {
    queue_.Shutdown();
    while (Wait()) {
    }
  }

  void Start(const google::protobuf::MessageLite& request) {
    const std::string text = request.SerializeAsString();
    const grpc::Slice slice(text);
    call_->StartCall(this);
    Wait();
    call_->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), this);
    Wait();  // whether it went out, Finish says
  }

  // False after the last.
  bool Read(std::vector<grpc::Slice>* message) {
    grpc::ByteBuffer bytes;
    call_->Read(&bytes, this);
    return Wait() && bytes.Dump(message).ok();
  }

  void Cancel() { context_.TryCancel(); }

  grpc::Status Finish() {
    grpc::Status status;
    call_->Finish(&status, this);
    Wait();
    return status;
  }

 private:
  // One operation is under way at a time.
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

// Gives the sink the data of a SnapshotBytes, its only field, from the slices it came in.
absl::Status GiveData(const std::vector<grpc::Slice>& message, const SnapshotPeer::Sink& sink) {
  uint64_t length = 0;
  int header = 0;  // bytes of it seen; -1: all
  for (const grpc::Slice& slice : message) {
    auto bytes = std::as_bytes(std::span(slice.begin(), slice.size()));
    for (; header >= 0 && !bytes.empty(); bytes = bytes.subspan(1)) {
      const auto byte = static_cast<uint64_t>(bytes.front());
      if (header == 0 ? byte != kDataTag : header > 4) return absl::DataLossError(kNoPiece);
      if (header > 0) length |= (byte & 0x7f) << (7 * (header - 1));
      header = header > 0 && byte < 0x80 ? -1 : header + 1;
    }
    if (bytes.empty()) continue;
    if (bytes.size() > length) return absl::DataLossError(kNoPiece);
    length -= bytes.size();
    if (absl::Status taken = sink(bytes); !taken.ok()) return taken;
  }
  return length == 0 ? absl::OkStatus() : absl::DataLossError(kNoPiece);
}

class GrpcSnapshotPeer : public SnapshotPeer {
 public:
  GrpcSnapshotPeer(const std::string& address, const std::optional<TlsIdentity>& tls)
      : address_(address) {
    for (auto& channel : channels_) {
      channel = OpenBulkChannel(address, tls, ServerName(ROLE_AGENT));
    }
    stub_ = AgentService::NewStub(channels_.front());
  }

  absl::StatusOr<SnapshotIndex> Index(const SnapshotRef& snapshot) override {
    const absl::Time end = absl::Now() + kAnswerDeadline;
    while (true) {
      grpc::ClientContext context;
      SetDeadline(&context, kAnswerDeadline);
      SnapshotIndex index;
      const absl::Status status =
          Described("GetSnapshotIndex", stub_->GetSnapshotIndex(&context, snapshot, &index));
      if (status.ok()) return index;
      if (!absl::IsFailedPrecondition(status) || absl::Now() > end) return status;
      absl::SleepFor(kAskAgain);
    }
  }

  absl::Status Read(const ReadSnapshotRequest& request, const Sink& sink) override {
    uint64_t wanted = 0;
    for (const auto& range : request.ranges()) wanted += range.bytes();
    BytesCall call(channels_[reads_++ % kConnections], kReadMethod,
                   kAnswerDeadline + absl::Seconds(static_cast<double>(wanted) /
                                                   kLeastBytesPerSecond));
    call.Start(request);
    absl::Status status;
    std::vector<grpc::Slice> message;
    while (status.ok() && call.Read(&message)) status = GiveData(message, sink);
    if (!status.ok()) call.Cancel();
    const grpc::Status ended = call.Finish();
    return status.ok() ? Described("ReadSnapshot", ended) : status;
  }

 private:
  absl::Status Described(const char* call, const grpc::Status& status) const {
    if (status.ok()) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        fmt::format("{} to agent {}: {}", call, address_, status.error_message()));
  }

  const std::string address_;
  std::array<std::shared_ptr<grpc::Channel>, kConnections> channels_;
  std::atomic<size_t> reads_ = 0;
  std::unique_ptr<AgentService::Stub> stub_;
};

}  // namespace

std::unique_ptr<SnapshotPeer> ConnectToSnapshotPeer(const std::string& address,
                                                    const std::optional<TlsIdentity>& tls) {
  return std::make_unique<GrpcSnapshotPeer>(address, tls);
}

}  // namespace moesaic
