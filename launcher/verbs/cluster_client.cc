#include "launcher/verbs/cluster_client.h"

#include <fmt/format.h>

#include <utility>

#include "scheduler/client/channel.h"

namespace moesaic {
absl::StatusOr<std::unique_ptr<ClusterClient>> ClusterClient::Open(const ConnectionFlags& flags,
                                                                   const VerbContext& context) {
  absl::StatusOr<CoordinatorConnection> connection = Connect(flags, ROLE_CLI, context);
  if (!connection.ok()) return connection.status();
  return std::unique_ptr<ClusterClient>(new ClusterClient(*std::move(connection)));
}

absl::Status ClusterClient::Call(
    const std::function<grpc::Status(grpc::ClientContext*)>& call, absl::Duration deadline) const {
  grpc::ClientContext context;
  SetDeadline(&context, deadline);
  context.set_wait_for_ready(proven_);  // a coordinator that is being restarted is waited for
  const grpc::Status status = call(&context);
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return absl::UnavailableError(
        fmt::format("the coordinator at {} does not answer", connection_.target));
  }
  return Explain(status);
}

absl::StatusOr<JobStatus> GetJob(ClusterClient* client, const std::string& job) {
  JobRef request;
  request.set_job(job);
  JobStatus status;
  const absl::Status answered = client->Call([&](grpc::ClientContext* context) {
    return client->stub().GetJob(context, request, &status);
  });
  if (!answered.ok()) return answered;
  return status;
}

}  // namespace moesaic
