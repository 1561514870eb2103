#include "launcher/verbs/cluster_client.h"

#include <fmt/format.h>

#include <utility>

#include "absl/time/time.h"
#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

constexpr char kVariable[] = "MOESAIC_COORDINATOR";
constexpr absl::Duration kCallDeadline = absl::Seconds(10);

}  // namespace

void AddClusterFlags(CLI::App* verb, ClusterFlags* flags) {
  verb->add_option("--coordinator", flags->coordinator,
                   "HOST:PORT of the coordinator (or the variable MOESAIC_COORDINATOR)");
}

absl::StatusOr<std::unique_ptr<ClusterClient>> ClusterClient::Open(const ClusterFlags& flags,
                                                                   const VerbContext& context) {
  std::string target = flags.coordinator;
  if (const auto variable = context.environment.find(kVariable);
      target.empty() && variable != context.environment.end()) {
    target = variable->second;
  }
  if (target.empty()) {
    return absl::InvalidArgumentError(
        fmt::format("which coordinator? Give --coordinator HOST:PORT, or set {}", kVariable));
  }
  return std::unique_ptr<ClusterClient>(new ClusterClient(std::move(target)));
}

ClusterClient::ClusterClient(std::string target)
    : target_(std::move(target)),
      channel_(OpenCoordinatorChannel(target_)),
      stub_(Coordinator::NewStub(channel_)) {}

absl::Status ClusterClient::Call(
    const std::function<grpc::Status(grpc::ClientContext*)>& call) const {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kCallDeadline));
  const grpc::Status status = call(&context);
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return absl::UnavailableError(fmt::format("the coordinator at {} does not answer", target_));
  }
  return Described(status);
}

absl::Status ClusterClient::Described(const grpc::Status& status) const {
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    return absl::UnavailableError(fmt::format("the coordinator at {} cannot be reached: {}",
                                              target_, status.error_message()));
  }
  return FromGrpc(status);
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
