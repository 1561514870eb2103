// Channels between the parts of a cluster. The settings of both ends stand in channel.cc:
// keep-alive pings find a silent peer that TCP would not, and the servers allow them.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

// Messages above this are refused on both sides; bulk data never goes through these channels.
inline constexpr int kMaxMessageBytes = 16 << 20;
// Calls and streams of one connection at a time; the next waits in the client.
inline constexpr int kMaxStreamsPerConnection = 128;

// Does not connect yet. Never through a proxy. With `tls` the server must be known by `server_name`
// (scheduler/certs/certificate.h), wherever it is; without, all is plain text.
std::shared_ptr<grpc::Channel> OpenChannel(const std::string& target,
                                           const std::optional<TlsIdentity>& tls,
                                           const std::string& server_name);
std::shared_ptr<grpc::Channel> OpenCoordinatorChannel(
    const std::string& target, const std::optional<TlsIdentity>& tls = std::nullopt);

// What every server of the cluster is set to: message sizes, streams, keep-alive, handshake limit.
void ConfigureServer(grpc::ServerBuilder* builder);

// The same for connections that carry snapshots: larger frames, reads and windows.
std::shared_ptr<grpc::Channel> OpenBulkChannel(const std::string& target,
                                               const std::optional<TlsIdentity>& tls,
                                               const std::string& server_name);
void ConfigureForBulk(grpc::ServerBuilder* builder);

// Every call has one; only the streams of agents, workers and watchers live on.
void SetDeadline(grpc::ClientContext* context, absl::Duration deadline);

absl::Status FromGrpc(const grpc::Status& status);
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace moesaic
