// Channels to the coordinator. Settings match the server's (scheduler/service/server.cc):
// keep-alive pings find a silent peer that TCP would not, and the server allows them.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <string>

#include "absl/status/status.h"

namespace moesaic {

// Messages above this are refused on both sides; bulk data never goes through these channels.
inline constexpr int kMaxMessageBytes = 16 << 20;

// Does not connect yet. Plain text, never through a proxy: `target` is on loopback.
std::shared_ptr<grpc::Channel> OpenCoordinatorChannel(const std::string& target);

absl::Status FromGrpc(const grpc::Status& status);
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace moesaic
