#include "scheduler/client/snapshot_peer.h"

#include <fmt/format.h>

#include <utility>

#include "absl/time/clock.h"
#include "proto/agent.grpc.pb.h"
#include "scheduler/certs/certificate.h"
#include "scheduler/client/channel.h"
#include "trainer/checkpoint/format/checksum.h"

namespace moesaic {
namespace {

constexpr absl::Duration kAnswerDeadline = absl::Seconds(5);
// What the slowest network that is of use delivers.
constexpr double kLeastBytesPerSecond = 8 << 20;
constexpr absl::Duration kAskAgain = absl::Milliseconds(50);

class GrpcSnapshotPeer : public SnapshotPeer {
 public:
  GrpcSnapshotPeer(const std::string& address, const std::optional<TlsIdentity>& tls)
      : address_(address),
        stub_(AgentService::NewStub(OpenChannel(address, tls, ServerName(ROLE_AGENT)))) {}

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
    grpc::ClientContext context;
    SetDeadline(&context, kAnswerDeadline + absl::Seconds(static_cast<double>(wanted) /
                                                          kLeastBytesPerSecond));
    const auto stream = stub_->ReadSnapshot(&context, request);
    absl::Status status;
    SnapshotBytes piece;
    while (status.ok() && stream->Read(&piece)) {
      const auto bytes = std::as_bytes(std::span(piece.data()));
      status = Xxh3Short(bytes) == piece.xxh3() ? sink(bytes)
                                                : absl::DataLossError("bytes changed on the way");
    }
    if (!status.ok()) context.TryCancel();
    const grpc::Status ended = stream->Finish();
    return status.ok() ? Described("ReadSnapshot", ended) : status;
  }

 private:
  absl::Status Described(const char* call, const grpc::Status& status) const {
    if (status.ok()) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        fmt::format("{} to agent {}: {}", call, address_, status.error_message()));
  }

  const std::string address_;
  const std::unique_ptr<AgentService::Stub> stub_;
};

}  // namespace

std::unique_ptr<SnapshotPeer> ConnectToSnapshotPeer(const std::string& address,
                                                    const std::optional<TlsIdentity>& tls) {
  return std::make_unique<GrpcSnapshotPeer>(address, tls);
}

}  // namespace moesaic
