#include <deque>
#include <optional>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/client/channel.h"
#include "scheduler/client/coordinator_client.h"

namespace moesaic {
namespace {

// Until the job's health.orphan_grace is known.
constexpr absl::Duration kPatience = absl::Seconds(60);
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

  ~GrpcCoordinatorClient() override { FinishProgress().IgnoreError(); }

  absl::StatusOr<RankTable> GetRankTable() override {
    RankTable table;
    const absl::Status status =
        Retried("GetRankTable", Patience(), [&](grpc::ClientContext* context) {
          return stub_->GetRankTable(context, address_.worker, &table);
        });
    if (!status.ok()) return status;
    MutexLock lock(&mutex_);
    const double grace = table.spec().health().orphan_grace();
    if (grace > 0) patience_ = absl::Seconds(grace);
    return table;
  }

  absl::Status Ready(const ReadyRequest& request, absl::Duration deadline) override {
    ReadyRequest sent = request;
    *sent.mutable_worker() = address_.worker;
    ReadyReply reply;
    return Retried("Ready", deadline, [&](grpc::ClientContext* context) {
      return stub_->Ready(context, sent, &reply);
    });
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
    last_report_ = queue_.back();
    last_report_->clear_metrics();  // they count once
    changed_.NotifyAll();
  }

  Control LatestControl() const override {
    MutexLock lock(&mutex_);
    return control_;
  }

  absl::Status FinishProgress() override {
    FinishSnapshots();
    if (!session_.joinable()) return absl::OkStatus();
    {
      MutexLock lock(&mutex_);
      closing_ = true;
      changed_.NotifyAll();
      const absl::Time end = absl::Now() + kFinishDeadline;
      while (!done_ && absl::Now() < end) changed_.WaitFor(&mutex_, end - absl::Now());
      if (!done_ && context_ != nullptr) context_->TryCancel();
    }
    session_.join();
    MutexLock lock(&mutex_);
    return result_;
  }

  void ReportSnapshot(const SnapshotReport& report) override {
    MutexLock lock(&mutex_);
    snapshots_.push_back(report);
    *snapshots_.back().mutable_worker() = address_.worker;
    newest_snapshot_ = snapshots_.back();
    changed_.NotifyAll();
    if (!sender_.joinable()) sender_ = std::thread([this] { SendSnapshots(); });
  }

 private:
  static void Prepare(grpc::ClientContext* context, absl::Duration deadline) {
    context->set_wait_for_ready(true);
    SetDeadline(context, deadline);
  }

  absl::Duration Patience() const {
    MutexLock lock(&mutex_);
    return patience_;
  }

  static bool Refused(const absl::Status& status) {
    return absl::IsFailedPrecondition(status) || absl::IsPermissionDenied(status) ||
           absl::IsNotFound(status);
  }

  // Calls again while the coordinator is away, until the deadline.
  template <typename Call>
  absl::Status Retried(const char* name, absl::Duration deadline, const Call& call) const {
    const absl::Time end = absl::Now() + deadline;
    while (true) {
      grpc::ClientContext context;
      Prepare(&context, end - absl::Now());
      const absl::Status status = Described(name, call(&context));
      if (!absl::IsUnavailable(status) || absl::Now() + kReconnectDelay > end) return status;
      absl::SleepFor(kReconnectDelay);
    }
  }

  void SendSnapshots() ABSL_LOCKS_EXCLUDED(mutex_) {
    while (true) {
      SnapshotReport report;
      {
        MutexLock lock(&mutex_);
        while (snapshots_.empty() && !snapshots_closing_) changed_.Wait(&mutex_);
        if (snapshots_.empty()) return;
        report = snapshots_.front();
      }
      SnapshotReply reply;
      const absl::Status status =
          Retried("ReportSnapshot", Patience(), [&](grpc::ClientContext* context) {
            return stub_->ReportSnapshot(context, report, &reply);
          });
      if (!status.ok()) {
        LogWarning("the coordinator did not take the snapshot of step {}: {}", report.step(),
                   std::string(status.message()));
      }
      MutexLock lock(&mutex_);
      if (Refused(status)) control_.set_abort(true);
      snapshots_.pop_front();
    }
  }

  void FinishSnapshots() ABSL_LOCKS_EXCLUDED(mutex_) {
    if (!sender_.joinable()) return;
    {
      MutexLock lock(&mutex_);
      snapshots_closing_ = true;
      changed_.NotifyAll();
    }
    sender_.join();
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
      if (Refused(status)) control_.set_abort(true);
      if (status.ok() || Refused(status) || closing_) {
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
      // The coordinator knows a stream by its first report.
      if (queue_.empty() && last_report_) queue_.push_back(*last_report_);
    }
    const std::unique_ptr<ProgressStream> stream = stub_->Progress(&context);
    std::thread reader([this, &stream] { ReadControls(stream.get()); });
    if (WriteReports(stream.get())) stream->WritesDone();
    reader.join();
    return Described("Progress", stream->Finish());
  }

  void ReadControls(ProgressStream* stream) ABSL_LOCKS_EXCLUDED(mutex_) {
    Control control;
    for (bool first = true; stream->Read(&control); first = false) {
      MutexLock lock(&mutex_);
      control_ = control;
      if (first && snapshots_.empty() && InFlight(control)) {
        snapshots_.push_back(*newest_snapshot_);
        changed_.NotifyAll();
      }
    }
    MutexLock lock(&mutex_);
    broken_ = true;
    changed_.NotifyAll();
  }

  bool InFlight(const Control& control) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return newest_snapshot_ && newest_snapshot_->step() > control.memory_step() &&
           newest_snapshot_->step() > control.committed_step() &&
           newest_snapshot_->step() > control.aborted_snapshot_step();
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
  std::thread sender_;  // of snapshot reports

  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<StepReport> queue_ ABSL_GUARDED_BY(mutex_);
  std::optional<StepReport> last_report_ ABSL_GUARDED_BY(mutex_);
  std::deque<SnapshotReport> snapshots_ ABSL_GUARDED_BY(mutex_);  // the front one is being sent
  std::optional<SnapshotReport> newest_snapshot_ ABSL_GUARDED_BY(mutex_);
  bool snapshots_closing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration patience_ ABSL_GUARDED_BY(mutex_) = kPatience;
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
