#include "scheduler/service/checkpoint_server.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <deque>
#include <utility>

#include "base/mutex.h"
#include "proto/checkpoint_service.grpc.pb.h"
#include "scheduler/client/channel.h"
#include "scheduler/service/checkpoint_writers.h"

namespace moesaic {
namespace {

// How soon a stream notices that its client has gone.
constexpr absl::Duration kLook = absl::Milliseconds(200);
constexpr uint64_t kProgressEvery = 64 << 20;
// A watcher that does not read for so long that this much is queued is cut off.
constexpr size_t kMaxQueuedEvents = 10000;

// Events of a watcher, from the thread that makes them to the one that sends them.
class EventQueue {
 public:
  void Push(const CheckpointEvent& event) {
    MutexLock lock(&mutex_);
    if (events_.size() < kMaxQueuedEvents) {
      events_.push_back(event);
    } else {
      overrun_ = true;
    }
    changed_.NotifyAll();
  }
  // Nothing when none has come for a while.
  absl::StatusOr<std::optional<CheckpointEvent>> Next() {
    MutexLock lock(&mutex_);
    if (overrun_) return absl::ResourceExhaustedError("slow reader");
    if (events_.empty()) changed_.WaitFor(&mutex_, kLook);
    if (events_.empty()) return std::optional<CheckpointEvent>();
    std::optional<CheckpointEvent> event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::deque<CheckpointEvent> events_ ABSL_GUARDED_BY(mutex_);
  bool overrun_ ABSL_GUARDED_BY(mutex_) = false;
};

class CheckpointServer : public Checkpoints::Service {
 public:
  explicit CheckpointServer(CoordinatorCore* core) : core_(core), writers_(core) {}

  grpc::Status Begin(grpc::ServerContext*, const BeginCheckpointRequest* request,
                     BeginCheckpointReply* reply) override {
    return ToGrpc(Put(writers_.Begin(*request), reply->mutable_staging()));
  }
  grpc::Status Report(grpc::ServerContext*, const ShardsPersisted* request,
                      ReportShardsReply*) override {
    return ToGrpc(writers_.Report(*request));
  }
  grpc::Status Commit(grpc::ServerContext*, const CommitCheckpointRequest* request,
                      CheckpointEntry* reply) override {
    return ToGrpc(Put(writers_.Commit(*request), reply));
  }

  grpc::Status List(grpc::ServerContext*, const ListCheckpointsRequest* request,
                    ListCheckpointsReply* reply) override {
    std::vector<std::string> jobs = {request->job()};
    if (request->job().empty()) {
      jobs.clear();
      for (const JobStatus& job : core_->ListJobs()) jobs.push_back(job.job());
    }
    for (const std::string& job : jobs) {
      const absl::StatusOr<std::string> dir = FolderOf(job);
      if (!dir.ok()) return ToGrpc(dir.status());
      const auto entries = core_->archive().List(job, *dir);
      if (!entries.ok()) return ToGrpc(entries.status());
      for (const CheckpointEntry& entry : *entries) *reply->add_checkpoints() = entry;
    }
    return grpc::Status::OK;
  }
  grpc::Status Pin(grpc::ServerContext*, const PinCheckpointRequest* request,
                   CheckpointEntry* reply) override {
    const CheckpointRef& ref = request->checkpoint();
    const absl::StatusOr<std::string> dir = FolderOf(ref.job());
    if (!dir.ok()) return ToGrpc(dir.status());
    return ToGrpc(
        Put(core_->archive().Pin(ref.job(), *dir, ref.step(), !request->unpin()), reply));
  }
  grpc::Status Delete(grpc::ServerContext*, const DeleteCheckpointRequest* request,
                      DeleteCheckpointReply*) override {
    const CheckpointRef& ref = request->checkpoint();
    const absl::StatusOr<std::string> dir = FolderOf(ref.job());
    if (!dir.ok()) return ToGrpc(dir.status());
    const absl::StatusOr<JobStatus> status = core_->GetJob(ref.job());
    if (!status.ok()) return ToGrpc(status.status());
    const uint64_t in_use = HasEnded(status->state()) ? 0 : status->committed_step();
    return ToGrpc(
        core_->archive().Delete(ref.job(), *dir, ref.step(), request->force(), in_use));
  }
  grpc::Status Verify(grpc::ServerContext* context, const CheckpointRef* request,
                      grpc::ServerWriter<VerifyProgress>* stream) override {
    const absl::StatusOr<std::string> dir = FolderOf(request->job());
    if (!dir.ok()) return ToGrpc(dir.status());
    std::atomic<bool> cancelled{false};
    VerifyProgress progress;
    const auto problems = core_->archive().Verify(
        request->job(), *dir, request->step(),
        [&](uint64_t done, uint64_t total) {
          if (done != total && done < progress.bytes_done() + kProgressEvery) return;
          progress.set_bytes_done(done);
          progress.set_bytes_total(total);
          if (context->IsCancelled() || !stream->Write(progress)) cancelled = true;
        },
        &cancelled);
    if (!problems.ok()) return ToGrpc(problems.status());
    progress.set_finished(true);
    for (const std::string& problem : *problems) progress.add_problems(problem);
    stream->Write(progress);
    return grpc::Status::OK;
  }
  grpc::Status Watch(grpc::ServerContext* context, const ListCheckpointsRequest* request,
                     grpc::ServerWriter<CheckpointEvent>* stream) override {
    const auto queue = std::make_shared<EventQueue>();
    const uint64_t number =
        core_->archive().Watch([queue, job = request->job()](const CheckpointEvent& event) {
          if (job.empty() || event.checkpoint().job() == job) queue->Push(event);
        });
    absl::Status ended;
    while (ended.ok() && !context->IsCancelled()) {
      const auto event = queue->Next();
      if (!event.ok()) {
        ended = event.status();
      } else if (event->has_value() && !stream->Write(**event)) {
        break;
      }
    }
    core_->archive().Unwatch(number);
    return ToGrpc(ended);
  }

 private:
  absl::StatusOr<std::string> FolderOf(const std::string& job) const {
    const absl::StatusOr<JobSpec> spec = core_->GetSpec(job);
    if (!spec.ok()) return spec.status();
    return spec->checkpoint().dir();
  }
  template <typename Value>
  static absl::Status Put(absl::StatusOr<Value> value, Value* reply) {
    if (!value.ok()) return value.status();
    *reply = *std::move(value);
    return absl::OkStatus();
  }

  CoordinatorCore* const core_;
  CheckpointWriters writers_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeCheckpointService(CoordinatorCore* core) {
  return std::make_unique<CheckpointServer>(core);
}

}  // namespace moesaic
