#include "scheduler/service/checkpoint_server.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <deque>
#include <utility>

#include "base/mutex.h"
#include "proto/checkpoint_service.grpc.pb.h"
#include "scheduler/client/channel.h"
#include "scheduler/service/checkpoint_writers.h"
#include "trainer/checkpoint/format/retention.h"

namespace moesaic {
namespace {

// How soon a stream notices that its client has gone.
constexpr absl::Duration kLook = absl::Milliseconds(200);
constexpr uint64_t kProgressEvery = 64 << 20;
// A watcher that does not read for so long that this much is queued is cut off.
constexpr size_t kMaxQueuedEvents = 10000;
constexpr int kMaxProblems = 1000;
// Of a reply that may become too large for a message; the rest of the message is small.
constexpr size_t kMaxShownBytes = kMaxMessageBytes - (1 << 20);

// Says of each entry of one job that is not in quarantine why it stays.
void SayWhyKept(const KeepSpec& keep, absl::Time now, std::vector<CheckpointEntry>* entries) {
  std::vector<StepFacts> facts;
  std::vector<CheckpointEntry*> decided;
  for (CheckpointEntry& entry : *entries) {
    if (!entry.quarantined().empty()) continue;
    StepFacts& fact = facts.emplace_back();
    fact.step = entry.step();
    fact.pinned = entry.pinned();
    fact.damaged = !entry.unreadable().empty();
    if (keep.best_by() == TRAINING_LOSS) {
      if (entry.has_loss()) fact.metric = entry.loss();
    } else if (entry.has_validation_loss()) {
      fact.metric = entry.validation_loss();
    }
    fact.created = absl::FromUnixNanos(entry.created_unix_ns());
    decided.push_back(&entry);
  }
  const std::vector<KeepDecision> decisions = ChooseKept(keep, facts, now);
  for (size_t i = 0; i < decided.size(); ++i) {
    for (const KeepReason reason : decisions[i].reasons) {
      decided[i]->add_kept_for(std::string(KeepReasonName(reason)));
    }
  }
}

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
      const absl::StatusOr<JobSpec> spec = core_->GetSpec(job);
      if (!spec.ok()) return ToGrpc(spec.status());
      auto entries = core_->archive().List(job, spec->checkpoint().dir());
      if (!entries.ok()) return ToGrpc(entries.status());
      SayWhyKept(spec->checkpoint().keep(), core_->clock().Now(), &*entries);
      for (const CheckpointEntry& entry : *entries) *reply->add_checkpoints() = entry;
    }
    return grpc::Status::OK;
  }
  grpc::Status Show(grpc::ServerContext*, const ShowCheckpointRequest* request,
                    ShowCheckpointReply* reply) override {
    const CheckpointRef& ref = request->checkpoint();
    const absl::StatusOr<std::string> dir = FolderOf(ref.job());
    if (!dir.ok()) return ToGrpc(dir.status());
    absl::StatusOr<CheckpointEntry> entry = core_->archive().Find(ref.job(), *dir, ref.step());
    if (!entry.ok()) return ToGrpc(entry.status());
    absl::StatusOr<Manifest> manifest = core_->archive().ManifestOf(*dir, *entry);
    if (!manifest.ok()) return ToGrpc(manifest.status());
    reply->set_objects(static_cast<uint32_t>(manifest->objects_size()));
    manifest->clear_files();
    if (!request->objects()) manifest->clear_objects();
    if (manifest->ByteSizeLong() > kMaxShownBytes) {
      return ToGrpc(absl::FailedPreconditionError(
          fmt::format("the {} objects of step {} are too much for one reply; list them where the "
                      "folder {} can be read",
                      reply->objects(), entry->step(), entry->path())));
    }
    *reply->mutable_entry() = *std::move(entry);
    *reply->mutable_manifest() = *std::move(manifest);
    return grpc::Status::OK;
  }
  grpc::Status Pin(grpc::ServerContext*, const PinCheckpointRequest* request,
                   CheckpointEntry* reply) override {
    const CheckpointRef& ref = request->checkpoint();
    const absl::StatusOr<std::string> dir = FolderOf(ref.job());
    if (!dir.ok()) return ToGrpc(dir.status());
    return ToGrpc(Put(core_->archive().Pin(ref.job(), *dir, ref.step(), !request->unpin(),
                                           request->note()),
                      reply));
  }
  grpc::Status Delete(grpc::ServerContext*, const DeleteCheckpointRequest* request,
                      DeleteCheckpointReply* reply) override {
    const CheckpointRef& ref = request->checkpoint();
    const absl::StatusOr<std::string> dir = FolderOf(ref.job());
    if (!dir.ok()) return ToGrpc(dir.status());
    const absl::StatusOr<JobStatus> status = core_->GetJob(ref.job());
    if (!status.ok()) return ToGrpc(status.status());
    const uint64_t in_use = HasEnded(status->state()) ? 0 : status->committed_step();
    absl::StatusOr<CheckpointEntry> entry = core_->archive().Find(ref.job(), *dir, ref.step());
    if (!entry.ok()) return ToGrpc(entry.status());
    const absl::Status removed =
        core_->archive().Delete(ref.job(), *dir, entry->step(), request->force(), in_use);
    if (removed.ok()) *reply->mutable_removed() = *std::move(entry);
    return ToGrpc(removed);
  }
  grpc::Status Verify(grpc::ServerContext* context, const CheckpointRef* request,
                      grpc::ServerWriter<VerifyProgress>* stream) override {
    const absl::StatusOr<std::string> dir = FolderOf(request->job());
    if (!dir.ok()) return ToGrpc(dir.status());
    std::atomic<bool> cancelled{false};
    VerifyProgress progress;
    VerifyOptions options;
    options.threads = ReadingThreads();
    options.cancelled = &cancelled;
    options.progress = [&](uint64_t done, uint64_t total) {
      if (done != total && done < progress.bytes_done() + kProgressEvery) return;
      progress.set_bytes_done(done);
      progress.set_bytes_total(total);
      if (context->IsCancelled() || !stream->Write(progress)) cancelled = true;
    };
    const auto problems =
        core_->archive().Verify(request->job(), *dir, request->step(), options);
    if (!problems.ok()) return ToGrpc(problems.status());
    progress.set_finished(true);
    for (const std::string& problem : *problems) {
      if (progress.problems_size() == kMaxProblems) break;
      progress.add_problems(problem);
    }
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
