#include <deque>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/client/channel.h"
#include "scheduler/client/coordinator_client.h"

namespace moesaic {
namespace {

constexpr absl::Duration kCallDeadline = absl::Seconds(30);
constexpr absl::Duration kFinishDeadline = absl::Seconds(10);
constexpr absl::Duration kReconnectDelay = absl::Milliseconds(500);
// While the coordinator is away the oldest reports go first: the newest say where the rank is.
constexpr size_t kMaxQueuedReports = 4096;

using ProgressStream = grpc::ClientReaderWriter<StepReport, Control>;

class GrpcCoordinatorClient : public CoordinatorClient {
 public:
  explicit GrpcCoordinatorClient(CoordinatorAddress address)
      : address_(std::move(address)),
        stub_(Coordinator::NewStub(OpenCoordinatorChannel(address_.target, address_.tls))) {}

  ~GrpcCoordinatorClient() override {
    if (session_.joinable()) FinishProgress().IgnoreError();
  }

  absl::StatusOr<RankTable> GetRankTable() override {
    grpc::ClientContext context;
    Prepare(&context, kCallDeadline);
    RankTable table;
    const absl::Status status =
        Described("GetRankTable", stub_->GetRankTable(&context, address_.worker, &table));
    if (!status.ok()) return status;
    return table;
  }

  absl::Status Ready(const ReadyRequest& request, absl::Duration deadline) override {
    grpc::ClientContext context;
    Prepare(&context, deadline);
    ReadyRequest sent = request;
    *sent.mutable_worker() = address_.worker;
    ReadyReply reply;
    return Described("Ready", stub_->Ready(&context, sent, &reply));
  }

  absl::Status StartProgress() override {
    if (session_.joinable()) return absl::FailedPreconditionError("progress was started before");
    session_ = std::thread([this] { RunSession(); });
    return absl::OkStatus();
  }

  void Report(const StepReport& report) override {
    MutexLock lock(&mutex_);
    if (queue_.size() >= kMaxQueuedReports) queue_.pop_front();
    queue_.push_back(report);
    *queue_.back().mutable_worker() = address_.worker;
    changed_.NotifyAll();
  }

  Control LatestControl() const override {
    MutexLock lock(&mutex_);
    return control_;
  }

  absl::Status FinishProgress() override {
    if (!session_.joinable()) return absl::OkStatus();
    {
      MutexLock lock(&mutex_);
      closing_ = true;
      changed_.NotifyAll();
      while (!done_ && changed_.WaitFor(&mutex_, kFinishDeadline)) {
      }
      if (!done_ && context_ != nullptr) context_->TryCancel();
    }
    session_.join();
    MutexLock lock(&mutex_);
    return result_;
  }

  absl::Status ReportSnapshot(const SnapshotReport& report) override {
    grpc::ClientContext context;
    Prepare(&context, kCallDeadline);
    SnapshotReport sent = report;
    *sent.mutable_worker() = address_.worker;
    SnapshotReply reply;
    return Described("ReportSnapshot", stub_->ReportSnapshot(&context, sent, &reply));
  }

 private:
  static void Prepare(grpc::ClientContext* context, absl::Duration deadline) {
    context->set_wait_for_ready(true);
    SetDeadline(context, deadline);
  }

  absl::Status Described(const char* call, const grpc::Status& status) const {
    if (status.ok()) return absl::OkStatus();
    return absl::Status(
        static_cast<absl::StatusCode>(status.error_code()),
        fmt::format("{} to coordinator {}: {}", call, address_.target, status.error_message()));
  }

  // Opens a stream and feeds it from the queue until FinishProgress; opens another when it breaks,
  // and gives up when the coordinator refuses this generation.
  void RunSession() ABSL_LOCKS_EXCLUDED(mutex_) {
    while (true) {
      const absl::Status status = RunStream();
      MutexLock lock(&mutex_);
      context_ = nullptr;
      if (absl::IsFailedPrecondition(status)) control_.set_abort(true);
      if (status.ok() || absl::IsFailedPrecondition(status) || closing_) {
        result_ = status;
        done_ = true;
        changed_.NotifyAll();
        return;
      }
      LogWarning("progress stream to {} broke ({}); connecting again", address_.target,
                 std::string(status.message()));
      if (!closing_) changed_.WaitFor(&mutex_, kReconnectDelay);
    }
  }

  absl::Status RunStream() ABSL_LOCKS_EXCLUDED(mutex_) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    {
      MutexLock lock(&mutex_);
      context_ = &context;
      broken_ = false;
    }
    const std::unique_ptr<ProgressStream> stream = stub_->Progress(&context);
    std::thread reader([this, &stream] { ReadControls(stream.get()); });
    if (WriteReports(stream.get())) stream->WritesDone();
    reader.join();
    return Described("Progress", stream->Finish());
  }

  void ReadControls(ProgressStream* stream) ABSL_LOCKS_EXCLUDED(mutex_) {
    Control control;
    while (stream->Read(&control)) {
      MutexLock lock(&mutex_);
      control_ = control;
    }
    MutexLock lock(&mutex_);
    broken_ = true;
    changed_.NotifyAll();
  }

  // True when everything was sent and the caller wants to finish; false when the stream broke.
  bool WriteReports(ProgressStream* stream) ABSL_LOCKS_EXCLUDED(mutex_) {
    while (true) {
      StepReport report;
      {
        MutexLock lock(&mutex_);
        while (queue_.empty() && !closing_ && !broken_) changed_.Wait(&mutex_);
        if (broken_) return false;
        if (queue_.empty()) return true;
        report = std::move(queue_.front());
        queue_.pop_front();
      }
      if (stream->Write(report)) continue;
      MutexLock lock(&mutex_);
      queue_.push_front(std::move(report));
      return false;
    }
  }

  const CoordinatorAddress address_;
  const std::unique_ptr<Coordinator::Stub> stub_;
  std::thread session_;

  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<StepReport> queue_ ABSL_GUARDED_BY(mutex_);
  Control control_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::Status result_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

std::unique_ptr<CoordinatorClient> ConnectToCoordinator(CoordinatorAddress address) {
  return std::make_unique<GrpcCoordinatorClient>(std::move(address));
}

}  // namespace moesaic
