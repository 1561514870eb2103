#include "scheduler/client/channel.h"

#include <grpcpp/create_channel.h>

#include <chrono>
#include <utility>

#include "scheduler/certs/certificate.h"

namespace moesaic {
namespace {

struct Setting {
  const char* name;
  int value;
};

// A peer that is silent for 5 s is gone, as a lease is by default. Pings are sent without calls too
// and as often as they come: a default server would cut such a client off (too_many_pings).
constexpr Setting kBothEnds[] = {
    {GRPC_ARG_KEEPALIVE_TIME_MS, 1000},
    {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 4000},
    {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
    {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0},
    {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, kMaxMessageBytes},
    {GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, kMaxMessageBytes},
};
constexpr Setting kServer[] = {
    {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500},
    {GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0},
    {GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection},
    // Whoever connects and says nothing is dropped.
    {GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10000},
    {GRPC_ARG_ALLOW_REUSEPORT, 0},
};
constexpr Setting kClient[] = {
    {GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100},
    {GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000},
    {GRPC_ARG_ENABLE_HTTP_PROXY, 0},
    // Each client has its own connection, so that one that breaks does not take others with it.
    {GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1},
};

// Both ends of connections that carry snapshots. Buffers of reads are just small enough for malloc
// to keep their pages.
constexpr Setting kBulk[] = {
    {GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 64 << 10},
    {GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 4 << 20},
    {GRPC_ARG_TCP_READ_CHUNK_SIZE, 64 << 10},
    {GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, 64 << 10},
};

template <size_t kSize>
void Set(const Setting (&settings)[kSize], grpc::ChannelArguments* arguments) {
  for (const Setting& setting : settings) arguments->SetInt(setting.name, setting.value);
}
template <size_t kSize>
void Set(const Setting (&settings)[kSize], grpc::ServerBuilder* builder) {
  for (const Setting& setting : settings) builder->AddChannelArgument(setting.name, setting.value);
}

std::shared_ptr<grpc::Channel> Open(const std::string& target,
                                    const std::optional<TlsIdentity>& tls,
                                    const std::string& server_name,
                                    grpc::ChannelArguments arguments) {
  Set(kBothEnds, &arguments);
  Set(kClient, &arguments);
  if (tls) arguments.SetSslTargetNameOverride(server_name);
  return grpc::CreateCustomChannel(target, ClientCredentials(tls), arguments);
}

}  // namespace

std::shared_ptr<grpc::Channel> OpenChannel(const std::string& target,
                                           const std::optional<TlsIdentity>& tls,
                                           const std::string& server_name) {
  return Open(target, tls, server_name, {});
}

std::shared_ptr<grpc::Channel> OpenBulkChannel(const std::string& target,
                                               const std::optional<TlsIdentity>& tls,
                                               const std::string& server_name) {
  grpc::ChannelArguments arguments;
  Set(kBulk, &arguments);
  return Open(target, tls, server_name, std::move(arguments));
}

std::shared_ptr<grpc::Channel> OpenCoordinatorChannel(const std::string& target,
                                                      const std::optional<TlsIdentity>& tls) {
  return OpenChannel(target, tls, ServerName(ROLE_COORDINATOR));
}

void ConfigureServer(grpc::ServerBuilder* builder) {
  Set(kBothEnds, builder);
  Set(kServer, builder);
  // The builder adds its own after these.
  builder->SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder->SetMaxSendMessageSize(kMaxMessageBytes);
}

void ConfigureForBulk(grpc::ServerBuilder* builder) { Set(kBulk, builder); }

void SetDeadline(grpc::ClientContext* context, absl::Duration deadline) {
  context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(deadline));
}

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace moesaic
