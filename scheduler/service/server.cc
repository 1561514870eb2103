#include "scheduler/service/server.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <deque>
#include <optional>
#include <utility>

#include "base/foreign_text.h"
#include "base/log.h"
#include "base/mutex.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/client/channel.h"
#include "scheduler/service/checkpoint_server.h"
#include "scheduler/service/event_stream.h"
#include "scheduler/service/fault_edge.h"
#include "scheduler/service/log_reader.h"
#include "scheduler/service/submission.h"

namespace moesaic {
namespace {

// The writing half of a stream: one write at a time, from a queue. gRPC may call back from within a
// call to it, so none is made under the lock. Outlives its reactor, which Detach-es when it is
// done. A peer that reads so slowly that more than the limits is queued is cut off.
template <typename Reactor, typename Message>
class StreamOutbox : public Outbox<Message> {
 public:
  StreamOutbox(Reactor* reactor, const QueueLimits& limits) : limits_(limits), reactor_(reactor) {}

  void Push(Message message) override {
    MutexLock lock(&mutex_);
    if (closing_) return;
    queued_bytes_ += message.ByteSizeLong();
    queue_.push_back(std::move(message));
    if (queue_.size() <= limits_.messages && queued_bytes_ <= limits_.bytes) return;
    DropQueue();
    too_slow_ = true;
    CloseLocked(absl::ResourceExhaustedError("it reads too slowly"));
  }
  void Close(absl::Status status) override {
    MutexLock lock(&mutex_);
    CloseLocked(std::move(status));
  }
  void Pump() override {
    Reactor* reactor = nullptr;
    bool finish = false;
    bool cancel = false;
    {
      MutexLock lock(&mutex_);
      if (reactor_ == nullptr || finished_ || cancelling_) return;
      if (writing_) {
        if (!too_slow_) return;
        // What is being written may never be read; the reactor stays until cancelling_ is false.
        too_slow_ = false;
        cancel = cancelling_ = true;
      } else if (!queue_.empty()) {
        current_ = std::move(queue_.front());
        queue_.pop_front();
        queued_bytes_ -= current_.ByteSizeLong();
        writing_ = true;
      } else if (closing_) {
        finished_ = finish = true;
      } else {
        return;
      }
      reactor = reactor_;
    }
    if (cancel) {
      reactor->Cancel();
      {
        MutexLock lock(&mutex_);
        cancelling_ = false;
      }
      Pump();
    } else if (finish) {
      reactor->Finish(ToGrpc(*closing_));
    } else {
      reactor->StartWrite(&current_);
    }
  }
  void OnWritten(bool ok) {
    {
      MutexLock lock(&mutex_);
      writing_ = false;
      if (!ok) {
        DropQueue();
        CloseLocked(absl::UnavailableError("the stream broke"));
      }
    }
    Pump();
  }
  void Detach() {
    MutexLock lock(&mutex_);
    reactor_ = nullptr;
    DropQueue();
  }

 private:
  void CloseLocked(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!closing_) closing_ = std::move(status);
  }
  void DropQueue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    queue_.clear();
    queued_bytes_ = 0;
  }

  const QueueLimits limits_;
  Mutex mutex_;
  Reactor* reactor_ ABSL_GUARDED_BY(mutex_);
  std::deque<Message> queue_ ABSL_GUARDED_BY(mutex_);
  size_t queued_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool too_slow_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelling_ ABSL_GUARDED_BY(mutex_) = false;
  Message current_;  // while writing_
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> closing_;  // set once, then constant
};

class AgentReactor : public grpc::ServerBidiReactor<AgentMessage, AgentCommand> {
 public:
  AgentReactor(CoordinatorCore* core, grpc::CallbackServerContext* context,
               const QueueLimits& limits)
      : core_(core),
        context_(context),
        outbox_(std::make_shared<StreamOutbox<AgentReactor, AgentCommand>>(this, limits)) {
    StartRead(&message_);
  }
  void OnReadDone(bool ok) override {
    if (!ok) {
      End(absl::OkStatus());
      return;
    }
    const absl::Status status = Take();
    if (status.ok()) {
      StartRead(&message_);
    } else {
      End(status);
    }
  }
  void OnWriteDone(bool ok) override { outbox_->OnWritten(ok); }
  void Cancel() { context_->TryCancel(); }
  void OnDone() override {
    outbox_->Detach();
    delete this;
  }

 private:
  absl::Status Take() {
    if (!registered_) {
      if (!message_.has_registration()) {
        return absl::InvalidArgumentError("the first message of an agent is its registration");
      }
      absl::Status named = CheckName("node", message_.agent());
      if (named.ok()) named = CheckNode(*context_->auth_context(), message_.agent());
      if (!named.ok()) return named;
      agent_ = message_.agent();
      incarnation_ = message_.incarnation();
      const absl::Status status =
          core_->Join(AgentJoined{agent_, incarnation_, message_.registration()}, outbox_);
      registered_ = status.ok();
      return status;
    }
    switch (message_.kind_case()) {
      case AgentMessage::kRenewal:
        return core_->Handle(AgentRenewed{agent_, incarnation_});
      case AgentMessage::kEnded:
        return core_->Handle(GenerationEnd{agent_, incarnation_, message_.ended()});
      case AgentMessage::kPersisted:
        // Stale shards are no reason to drop the agent.
        core_->Handle(ShardsReported{agent_, incarnation_, message_.persisted()}).IgnoreError();
        return absl::OkStatus();
      case AgentMessage::kReplicated:
        core_->Handle(CopiesReported{agent_, incarnation_, message_.replicated()}).IgnoreError();
        return absl::OkStatus();
      case AgentMessage::kPreempted:
        return core_->Handle(
            AgentPreempted{agent_, incarnation_, message_.preempted().reason()});
      default:
        return absl::InvalidArgumentError("not a message of a registered agent");
    }
  }
  void End(const absl::Status& status) {
    if (registered_) {
      LogInfo("the stream of agent {} ended{}{}", agent_, status.ok() ? "" : ": ",
              std::string(status.message()));
      core_->Leave({agent_, incarnation_, "its connection closed"}, outbox_.get());
    }
    outbox_->Close(status);
    outbox_->Pump();
  }

  CoordinatorCore* const core_;
  grpc::CallbackServerContext* const context_;
  const std::shared_ptr<StreamOutbox<AgentReactor, AgentCommand>> outbox_;
  AgentMessage message_;
  bool registered_ = false;
  std::string agent_;
  std::string incarnation_;
};

class ProgressReactor : public grpc::ServerBidiReactor<StepReport, Control> {
 public:
  ProgressReactor(CoordinatorCore* core, grpc::CallbackServerContext* context,
                  const QueueLimits& limits)
      : core_(core),
        context_(context),
        outbox_(std::make_shared<StreamOutbox<ProgressReactor, Control>>(this, limits)) {
    StartRead(&report_);
  }
  void OnReadDone(bool ok) override {
    absl::Status status;
    if (ok) {
      status =
          opened_ ? core_->Handle(StepReported{report_}) : core_->OpenProgress(report_, outbox_);
      opened_ = true;
    }
    if (ok && status.ok()) {
      StartRead(&report_);
    } else {
      outbox_->Close(status);
      outbox_->Pump();
    }
  }
  void OnWriteDone(bool ok) override { outbox_->OnWritten(ok); }
  void Cancel() { context_->TryCancel(); }
  void OnDone() override {
    core_->CloseProgress(outbox_.get());
    outbox_->Detach();
    delete this;
  }

 private:
  CoordinatorCore* const core_;
  grpc::CallbackServerContext* const context_;
  const std::shared_ptr<StreamOutbox<ProgressReactor, Control>> outbox_;
  StepReport report_;
  bool opened_ = false;
};

// "10.0.0.1" of "ipv4:10.0.0.1:4711".
std::string HostOf(const std::string& peer) {
  const size_t begin = peer.find(':') + 1;
  return peer.substr(begin, peer.rfind(':') - begin);
}

class Service : public Coordinator::CallbackService {
 public:
  Service(CoordinatorCore* core, Security security, const ServerOptions& options)
      : core_(core), security_(security), limits_(options.queue_limits), log_reader_(core),
        fault_edge_(core, options.allow_chaos), submissions_(options.submissions) {}

  // Ends the streams that only this side would end.
  void Shutdown() { log_reader_.Shutdown(); }


  grpc::ServerUnaryReactor* SubmitJob(grpc::CallbackServerContext* context,
                                      const SubmitJobRequest* request,
                                      SubmitJobReply* reply) override {
    const absl::Status valid = CheckSubmission(*request);
    if (!valid.ok()) return Answer(context, valid);
    reply->set_job(request->spec().name());
    MutexLock lock(&submitting_);  // from the count of jobs to the new one
    const absl::Status admitted = submissions_.Admit(HostOf(context->peer()),
                                                     core_->CountLiveJobs(), core_->clock().Now());
    if (!admitted.ok()) return Answer(context, admitted);
    return Answer(context, core_->Handle(JobSubmitted{request->spec(), request->resume()}));
  }
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context, const JobRef* request,
                                   JobStatus* reply) override {
    const absl::Status status = Put(core_->GetJob(request->job()), reply);
    reply->set_security(security_);
    return Answer(context, status);
  }
  grpc::ServerUnaryReactor* ListJobs(grpc::CallbackServerContext* context, const ListJobsRequest*,
                                     ListJobsReply* reply) override {
    for (JobStatus& job : core_->ListJobs()) {
      job.set_security(security_);
      *reply->add_jobs() = std::move(job);
    }
    return Answer(context, absl::OkStatus());
  }
  grpc::ServerUnaryReactor* StopJob(grpc::CallbackServerContext* context,
                                    const StopJobRequest* request, StopJobReply*) override {
    return Answer(context, core_->Handle(StopRequested{request->job(), request->now()}));
  }
  grpc::ServerUnaryReactor* ResizeJob(grpc::CallbackServerContext* context,
                                      const ResizeJobRequest* request, ResizeJobReply*) override {
    return Answer(context, core_->Handle(ResizeRequested{request->job(), request->min_nodes(),
                                                         request->max_nodes()}));
  }
  grpc::ServerUnaryReactor* ListNodes(grpc::CallbackServerContext* context,
                                      const ListNodesRequest*, ListNodesReply* reply) override {
    for (NodeStatus& node : core_->ListNodes()) *reply->add_nodes() = std::move(node);
    return Answer(context, absl::OkStatus());
  }
  grpc::ServerUnaryReactor* ChangeNode(grpc::CallbackServerContext* context,
                                       const ChangeNodeRequest* request,
                                       ChangeNodeReply*) override {
    return Answer(context, core_->Handle(NodeChangeRequested{*request}));
  }
  grpc::ServerUnaryReactor* InjectFault(grpc::CallbackServerContext* context,
                                        const InjectFaultRequest* request,
                                        InjectFaultReply* reply) override {
    absl::StatusOr<std::string> done = fault_edge_.Inject(*request);
    if (done.ok()) reply->set_done(*std::move(done));
    return Answer(context, done.status());
  }
  grpc::ServerWriteReactor<LogBytes>* ReadLog(grpc::CallbackServerContext*,
                                              const ReadLogRequest* request) override {
    return log_reader_.Open(*request);
  }
  grpc::ServerUnaryReactor* GetRankTable(grpc::CallbackServerContext* context,
                                         const WorkerIdentity* request, RankTable* reply) override {
    return Answer(context, Put(core_->GetRankTable(*request), reply));
  }
  grpc::ServerUnaryReactor* ReportSnapshot(grpc::CallbackServerContext* context,
                                           const SnapshotReport* request, SnapshotReply*) override {
    return Answer(context, core_->Handle(SnapshotReported{*request}));
  }
  grpc::ServerUnaryReactor* Ready(grpc::CallbackServerContext* context, const ReadyRequest* request,
                                  ReadyReply*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    core_->Ready(*request, [reactor](absl::Status status) { reactor->Finish(ToGrpc(status)); });
    return reactor;
  }
  grpc::ServerBidiReactor<AgentMessage, AgentCommand>* AgentSession(
      grpc::CallbackServerContext* context) override {
    return new AgentReactor(core_, context, limits_);
  }
  grpc::ServerBidiReactor<StepReport, Control>* Progress(
      grpc::CallbackServerContext* context) override {
    return new ProgressReactor(core_, context, limits_);
  }
  grpc::ServerWriteReactor<JobEvent>* WatchJob(grpc::CallbackServerContext*,
                                               const WatchJobRequest* request) override {
    return new EventStream(core_, *request);
  }

 private:
  static grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context,
                                          const absl::Status& status) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(status));
    return reactor;
  }
  template <typename Reply>
  static absl::Status Put(absl::StatusOr<Reply> value, Reply* reply) {
    if (!value.ok()) return value.status();
    *reply = *std::move(value);
    return absl::OkStatus();
  }

  CoordinatorCore* const core_;
  const Security security_;
  const QueueLimits limits_;
  LogReader log_reader_;
  const FaultEdge fault_edge_;
  Mutex submitting_;
  SubmissionLimiter submissions_ ABSL_GUARDED_BY(submitting_);
};

Security SecurityOf(const ServerOptions& options) {
  if (options.tls) return SECURITY_TLS;
  return IsLoopback(options.listen) ? SECURITY_LOOPBACK : SECURITY_NONE;
}

class RunningServer : public CoordinatorServer {
 public:
  RunningServer(CoordinatorCore* core, Security security, const ServerOptions& options)
      : core_(core),
        service_(core, security, options),
        checkpoints_(MakeCheckpointService(core)) {}
  ~RunningServer() override {
    core_->Shutdown();
    service_.Shutdown();
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }

  absl::Status Listen(const ServerOptions& options) {
    grpc::ServerBuilder builder;
    int bound = 0;
    builder.AddListeningPort(options.listen, ServerCredentials(options.tls), &bound);
    builder.RegisterService(&service_);
    builder.RegisterService(checkpoints_.get());
    ConfigureServer(&builder);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || bound == 0) {
      return absl::UnavailableError(fmt::format("cannot listen on {}", options.listen));
    }
    address_ = fmt::format("{}:{}", options.listen.substr(0, options.listen.rfind(':')), bound);
    return absl::OkStatus();
  }
  const std::string& address() const override { return address_; }

 private:
  CoordinatorCore* const core_;
  Service service_;
  const std::unique_ptr<grpc::Service> checkpoints_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(
    CoordinatorCore* core, const ServerOptions& options) {
  const Security security = SecurityOf(options);
  const absl::Status allowed =
      CheckPlainText(options.listen, options.tls.has_value(), options.insecure);
  if (!allowed.ok()) return allowed;
  auto server = std::make_unique<RunningServer>(core, security, options);
  if (const absl::Status status = server->Listen(options); !status.ok()) return status;
  if (security == SECURITY_NONE) {
    LogWarning("INSECURE: {} takes plain text from anyone who reaches it", server->address());
  }
  return server;
}

}  // namespace moesaic
