// The calls of verbs to a running coordinator.
#pragma once

#include <grpcpp/client_context.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launcher/verbs/connection_flags.h"
#include "launcher/verbs/verb.h"

namespace moesaic {

// Thread-safe.
class ClusterClient {
 public:
  // Does not connect yet. Errors: as Connect of connection_flags.h.
  static absl::StatusOr<std::unique_ptr<ClusterClient>> Open(const ConnectionFlags& flags,
                                                             const VerbContext& context);

  Coordinator::Stub& stub() { return *connection_.stub; }
  const std::shared_ptr<grpc::Channel>& channel() const { return connection_.channel; }

  // One unary call. Unavailable when nobody answers in time.
  absl::Status Call(const std::function<grpc::Status(grpc::ClientContext*)>& call,
                    absl::Duration deadline = absl::Seconds(10)) const;
  // What a stream came to.
  absl::Status Explain(const grpc::Status& status) const {
    if (status.ok()) proven_ = true;
    return connection_.Explain(status, proven_);
  }

 private:
  explicit ClusterClient(CoordinatorConnection connection) : connection_(std::move(connection)) {}

  const CoordinatorConnection connection_;
  mutable std::atomic<bool> proven_{false};  // a call was answered
};

// NotFound: there is no such job.
absl::StatusOr<JobStatus> GetJob(ClusterClient* client, const std::string& job);

}  // namespace moesaic
