#include "launcher/run/embedded_run.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "launcher/agent/agent.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/client/channel.h"
#include "scheduler/service/server.h"
#include "scheduler/state/planner.h"

namespace moesaic {
namespace {

constexpr char kNode[] = "local";
constexpr absl::Duration kCallDeadline = absl::Seconds(10);

absl::Status CheckHost(const JobSpec& spec, uint32_t cores) {
  const absl::StatusOr<GenerationPlan> plan =
      PlanGeneration({.spec = &spec, .nodes = {{.id = kNode, .slots = cores, .cores = cores}}});
  if (!absl::IsFailedPrecondition(plan.status())) return plan.status();
  if (spec.elastic().nodes().min() > 1) {
    return absl::ResourceExhaustedError(
        fmt::format("the job wants at least {} nodes (elastic.nodes.min), and this is one host",
                    spec.elastic().nodes().min()));
  }
  return absl::ResourceExhaustedError(fmt::format(
      "the job wants {0} ranks on a node (elastic.slots_per_node), and this host has {1} core{2}; "
      "set elastic.slots_per_node: {1}, or launch.oversubscribe: true to share cores among ranks",
      spec.elastic().slots_per_node(), cores, cores == 1 ? "" : "s"));
}

class LocalRun : public EmbeddedRun {
 public:
  absl::Status Begin(EmbeddedRunOptions options) {
    const JobSpec& spec = options.spec;
    job_ = spec.name();
    std::error_code error;
    std::filesystem::create_directories(spec.run().dir(), error);
    if (error) {
      return absl::InvalidArgumentError(
          fmt::format("run.dir: cannot make {}: {}", spec.run().dir(), error.message()));
    }
    CoordinatorOptions coordinator;
    coordinator.cluster.lease_ttl = absl::Seconds(spec.health().lease_ttl());
    coordinator.cluster.join_wait = absl::ZeroDuration();  // nobody else can join
    coordinator.store_path = spec.run().dir() + "/coordinator.sqlite";
    coordinator.cluster.blame.failures = 0;  // there is no other node
    coordinator.abandon_live_jobs = true;
    coordinator.verify_checkpoints = false;  // every core trains
    coordinator.binary = options.binary;
    auto core = CoordinatorCore::Open(std::move(coordinator));
    if (!core.ok()) return core.status();
    core_ = *std::move(core);
    auto server = CoordinatorServer::Start(core_.get(), ServerOptions());
    if (!server.ok()) return server.status();
    server_ = *std::move(server);
    stub_ = Coordinator::NewStub(OpenCoordinatorChannel(server_->address()));

    AgentOptions agent;
    agent.name = kNode;
    agent.coordinator = server_->address();
    agent.slots = agent.cores = options.cores;
    agent.version = options.binary;
    agent.worker = options.worker;
    agent.mpirun = options.mpirun;
    agent.shared_memory = options.shared_memory;
    agent.environment = options.environment;
    auto started = Agent::Start(std::move(agent));
    if (!started.ok()) return started.status();
    agent_ = *std::move(started);

    grpc::ClientContext context;
    SetDeadline(&context);
    SubmitJobRequest request;
    *request.mutable_spec() = options.spec;
    request.set_resume(options.resume);
    SubmitJobReply reply;
    return FromGrpc(stub_->SubmitJob(&context, request, &reply));
  }

  absl::StatusOr<JobStatus> Follow(const std::function<void(const JobEvent&)>& on_event) override {
    grpc::ClientContext context;
    WatchJobRequest request;
    request.set_job(job_);
    const auto stream = stub_->WatchJob(&context, request);
    JobEvent event;
    while (stream->Read(&event)) on_event(event);
    const absl::Status ended = FromGrpc(stream->Finish());
    if (!ended.ok()) return ended;
    return core_->GetJob(job_);
  }

  absl::Status Stop(bool now) override {
    grpc::ClientContext context;
    SetDeadline(&context);
    StopJobRequest request;
    request.set_job(job_);
    request.set_now(now);
    StopJobReply reply;
    return FromGrpc(stub_->StopJob(&context, request, &reply));
  }

 private:
  static void SetDeadline(grpc::ClientContext* context) {
    context->set_wait_for_ready(true);
    context->set_deadline(std::chrono::system_clock::now() +
                          absl::ToChronoMilliseconds(kCallDeadline));
  }

  std::string job_;
  // Destroyed from the last to the first: the agent says goodbye to a coordinator that is there.
  std::unique_ptr<CoordinatorCore> core_;
  std::unique_ptr<CoordinatorServer> server_;
  std::unique_ptr<Coordinator::Stub> stub_;
  std::unique_ptr<Agent> agent_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EmbeddedRun>> EmbeddedRun::Start(EmbeddedRunOptions options) {
  if (const absl::Status status = CheckHost(options.spec, options.cores); !status.ok())
    return status;
  auto run = std::make_unique<LocalRun>();
  if (const absl::Status status = run->Begin(std::move(options)); !status.ok()) return status;
  return run;
}

}  // namespace moesaic
