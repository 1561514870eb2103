// Any bytes as the messages of the checkpoint service (Checkpoints), fed to what is behind it: a
// coordinator with a running job, whose checkpoints lie in memory. The input is a list of (kind,
// length, message), one byte each for the first two. Messages of writers are merged into right
// ones, so that small inputs reach what is deep. What is committed must verify to the last byte.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "scheduler/service/checkpoint_writers.h"
#include "scheduler/service/coordinator.h"
#include "tests/base/scratch_folder.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"

namespace moesaic {
namespace {

constexpr char kDir[] = "/checkpoints";
constexpr uint32_t kRanks = 2;

void Require(bool holds) {
  if (!holds) std::abort();
}

class Deaf : public Outbox<AgentCommand> {
 public:
  void Push(AgentCommand) override {}
  void Close(absl::Status) override {}
  void Pump() override {}
};

// Lives as long as the process; an input leaves it as it found it.
class Service {
 public:
  Service() {
    CoordinatorOptions options;
    options.cluster.join_wait = absl::ZeroDuration();
    options.cluster.draw_token = [] { return "token"; };
    options.store_path = dir_ + "/coordinator.sqlite";
    options.tick = absl::ZeroDuration();
    options.verify_checkpoints = false;
    options.files = &files_;
    core_ = *CoordinatorCore::Open(options);
    AgentRegistration registration;
    registration.set_slots(1);
    registration.set_cores(1);
    registration.set_arena_dir("/dev/shm/x");
    Require(core_->Join(AgentJoined{"n1", "i", registration}, std::make_shared<Deaf>()).ok());
    JobSpec spec = TinyJob();
    spec.mutable_checkpoint()->set_dir(kDir);
    Require(core_->Handle(JobSubmitted{spec, "auto"}).ok());
    while (!core_->LiveRankTable(spec.name()).ok()) std::this_thread::yield();
    writer_.set_job(spec.name());
    writer_.set_generation(core_->LiveRankTable(spec.name())->generation());
    writer_.set_token("token");
  }
  ~Service() { core_.reset(); }

  void Begin(CheckpointWriters* writers, const std::string& bytes) {
    BeginCheckpointRequest request;
    *request.mutable_writer() = writer_;
    request.set_step(7);
    request.set_ranks(kRanks);
    if (!request.MergeFromString(bytes)) return;
    const absl::StatusOr<std::string> staging = writers->Begin(request);
    if (!staging.ok()) return;
    staging_ = *staging;
    step_ = request.step();
    reports_ = *PersistTiny(&files_, staging_, kRanks, step_, writer_.generation());
  }
  // The right reports, the last of them changed.
  void Report(CheckpointWriters* writers, const std::string& bytes) {
    for (size_t i = 0; i < reports_.size(); ++i) {
      ShardsPersisted report = reports_[i];
      if (i + 1 == reports_.size() && !report.MergeFromString(bytes)) return;
      writers->Report(report).IgnoreError();
    }
  }
  void Commit(CheckpointWriters* writers, const std::string& bytes) {
    CommitCheckpointRequest request;
    *request.mutable_writer() = writer_;
    request.set_step(step_);
    request.set_staging(staging_);
    if (!request.MergeFromString(bytes)) return;
    const absl::StatusOr<CheckpointEntry> entry = writers->Commit(request);
    if (!entry.ok()) return;
    const auto folder = files_.OpenFolder(entry->path());
    Require(folder.ok() && VerifyStep(**folder, VerifyDepth::kContent).ok());
  }
  // What people ask.
  void Ask(uint8_t kind, const std::string& bytes) {
    PinCheckpointRequest request;
    request.mutable_checkpoint()->set_job(writer_.job());
    if (!request.MergeFromString(bytes)) return;
    const std::string& job = request.checkpoint().job();
    const absl::StatusOr<JobSpec> spec = core_->GetSpec(job);
    if (!spec.ok()) return;
    const std::string& dir = spec->checkpoint().dir();
    const uint64_t step = request.checkpoint().step();
    switch (kind % 4) {
      case 0:
        core_->archive().Pin(job, dir, step, !request.unpin(), request.note()).IgnoreError();
        return;
      case 1:
        core_->archive().Verify(job, dir, step, VerifyOptions()).IgnoreError();
        return;
      case 2: {
        const absl::StatusOr<CheckpointEntry> entry = core_->archive().Find(job, dir, step);
        if (entry.ok()) core_->archive().ManifestOf(dir, *entry).IgnoreError();
        return;
      }
      default:
        core_->archive().Delete(job, dir, step, request.unpin(), 0).IgnoreError();
    }
  }
  void Clean() {
    const absl::Status cleaned =
        core_->archive().With(writer_.job(), kDir, [](CheckpointRoot* root) {
          const auto steps = root->Steps();
          for (const uint64_t step : *steps) root->Remove(step, true).IgnoreError();
          return root->Sweep(0);
        });
    Require(cleaned.ok());
    reports_.clear();
    staging_.clear();
  }

  CoordinatorCore* core() { return core_.get(); }

 private:
  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  MemoryFileSystem files_;
  std::unique_ptr<CoordinatorCore> core_;
  WorkerIdentity writer_;
  std::string staging_;
  uint64_t step_ = 0;
  std::vector<ShardsPersisted> reports_;
};

}  // namespace
}  // namespace moesaic

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static moesaic::Service service;
  moesaic::CheckpointWriters writers(service.core());
  while (size >= 2) {
    const size_t length = std::min<size_t>(data[1], size - 2);
    const std::string bytes(reinterpret_cast<const char*>(data) + 2, length);
    switch (data[0] % 7) {
      case 0: service.Begin(&writers, bytes); break;
      case 1: service.Report(&writers, bytes); break;
      case 2: service.Commit(&writers, bytes); break;
      default: service.Ask(data[0] % 7 - 3, bytes);
    }
    data += 2 + length;
    size -= 2 + length;
  }
  service.Clean();
  return 0;
}
