// How the verbs that talk to a running coordinator reach it.
#pragma once

#include <CLI/CLI.hpp>
#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/verbs/verb.h"
#include "proto/coordinator.grpc.pb.h"

namespace moesaic {

struct ClusterFlags {
  std::string coordinator;
};

// Adds --coordinator. `flags` must outlive the parse.
void AddClusterFlags(CLI::App* verb, ClusterFlags* flags);

// Thread-safe.
class ClusterClient {
 public:
  // Does not connect yet. InvalidArgument when nobody said where the coordinator is (--coordinator,
  // or MOESAIC_COORDINATOR).
  static absl::StatusOr<std::unique_ptr<ClusterClient>> Open(const ClusterFlags& flags,
                                                             const VerbContext& context);

  Coordinator::Stub& stub() { return *stub_; }
  const std::string& target() const { return target_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  // One unary call, with a deadline. Unavailable when nobody answers in time.
  absl::Status Call(const std::function<grpc::Status(grpc::ClientContext*)>& call) const;
  // What a call or stream came to, with the coordinator's address where it was not reached.
  absl::Status Described(const grpc::Status& status) const;

 private:
  explicit ClusterClient(std::string target);

  const std::string target_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<Coordinator::Stub> stub_;
};

// NotFound: there is no such job.
absl::StatusOr<JobStatus> GetJob(ClusterClient* client, const std::string& job);

}  // namespace moesaic
