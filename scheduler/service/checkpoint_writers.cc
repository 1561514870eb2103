#include "scheduler/service/checkpoint_writers.h"

#include <fmt/format.h>

#include <utility>

#include "base/log.h"

namespace moesaic {
namespace {

constexpr size_t kMaxSaves = 16;
constexpr uint32_t kMaxRanks = 65536;

absl::Status NoSuchSave(const std::string& staging) {
  return absl::FailedPreconditionError(fmt::format("stale save: nothing is being written to {}",
                                                   staging));
}

}  // namespace

absl::StatusOr<std::string> CheckpointWriters::Begin(const BeginCheckpointRequest& request) {
  const WorkerIdentity& writer = request.writer();
  if (const absl::Status current = core_->CheckGeneration(writer); !current.ok()) return current;
  absl::StatusOr<JobSpec> spec = core_->GetSpec(writer.job());
  if (!spec.ok()) return spec.status();
  if (request.step() == 0 || request.step() > spec->train().steps() || request.ranks() == 0 ||
      request.ranks() > kMaxRanks) {
    return absl::InvalidArgumentError(
        fmt::format("a save of step {} by {} ranks, of a job of {} steps", request.step(),
                    request.ranks(), spec->train().steps()));
  }
  for (const auto& [staging, save] : TakeStale()) Discard(staging, save, "its generation is over");
  {
    MutexLock lock(&mutex_);
    if (saves_.size() >= kMaxSaves) return absl::ResourceExhaustedError("too many saves at once");
  }
  absl::StatusOr<std::string> staging;
  const absl::Status begun = core_->archive().With(
      writer.job(), spec->checkpoint().dir(), [&](CheckpointRoot* root) {
        staging = root->BeginStaging(request.step(), writer.generation());
        return staging.status();
      });
  if (!begun.ok()) return begun;
  MutexLock lock(&mutex_);
  saves_[*staging] = Save{writer, request.step(), request.ranks(), *std::move(spec), {}};
  return staging;
}

absl::Status CheckpointWriters::Report(const ShardsPersisted& report) {
  WorkerIdentity writer;
  {
    MutexLock lock(&mutex_);
    const auto save = saves_.find(report.staging());
    if (save == saves_.end()) return NoSuchSave(report.staging());
    writer = save->second.writer;
  }
  if (const absl::Status current = core_->CheckGeneration(writer); !current.ok()) return current;
  MutexLock lock(&mutex_);
  const auto save = saves_.find(report.staging());
  if (save == saves_.end()) return NoSuchSave(report.staging());
  if (report.job() != writer.job() || report.generation() != writer.generation() ||
      report.step() != save->second.step || report.rank() >= save->second.ranks) {
    return absl::FailedPreconditionError(
        fmt::format("stale shards of rank {} at step {}", report.rank(), report.step()));
  }
  save->second.reports[report.rank()] = report;
  return absl::OkStatus();
}

absl::StatusOr<CheckpointEntry> CheckpointWriters::Commit(const CommitCheckpointRequest& request) {
  const absl::Status current = core_->CheckGeneration(request.writer());
  if (!current.ok()) return current;
  Save save;
  {
    MutexLock lock(&mutex_);
    const auto found = saves_.find(request.staging());
    if (found == saves_.end() || found->second.step != request.step() ||
        found->second.writer.job() != request.writer().job() ||
        found->second.writer.generation() != request.writer().generation()) {
      return NoSuchSave(request.staging());
    }
    save = std::move(found->second);
    saves_.erase(found);
  }
  std::vector<ShardsPersisted> reports;
  for (auto& [rank, report] : save.reports) reports.push_back(std::move(report));
  const absl::StatusOr<JobStatus> status = core_->GetJob(save.writer.job());
  if (!status.ok()) return status.status();
  CommitRequest commit;
  commit.staging = request.staging();
  commit.generation = save.writer.generation();
  commit.ranks = save.ranks;
  commit.reports = reports;
  commit.spec = save.spec;
  commit.tokenizer = save.spec.data().tokenizer();
  commit.binary = core_->binary();
  commit.layout = status->layout();
  commit.created = core_->clock().Now();
  const absl::Status committed = core_->archive().With(
      save.writer.job(), save.spec.checkpoint().dir(), [&](CheckpointRoot* root) {
        // The fence: no other commit of this job can come between this look and the rename.
        const absl::Status still = core_->CheckGeneration(request.writer());
        return still.ok() ? root->Commit(commit).status() : still;
      });
  if (!committed.ok()) {
    Discard(request.staging(), save, std::string(committed.message()));
    return committed;
  }
  absl::StatusOr<CheckpointEntry> entry =
      core_->archive().Find(save.writer.job(), save.spec.checkpoint().dir(), save.step);
  if (!entry.ok()) return entry.status();
  // Refused where the job has ended meanwhile: then nobody goes on from it.
  core_->Handle(StepCommitted{save.writer.job(), save.step, entry->path()}).IgnoreError();
  return entry;
}

std::vector<std::pair<std::string, CheckpointWriters::Save>> CheckpointWriters::TakeStale() {
  std::vector<std::pair<std::string, Save>> all;
  {
    MutexLock lock(&mutex_);
    all.assign(saves_.begin(), saves_.end());
  }
  std::vector<std::pair<std::string, Save>> stale;
  for (auto& entry : all) {
    if (core_->CheckGeneration(entry.second.writer).ok()) continue;
    MutexLock lock(&mutex_);
    if (saves_.erase(entry.first) > 0) stale.push_back(std::move(entry));
  }
  return stale;
}

void CheckpointWriters::Discard(const std::string& staging, const Save& save,
                                const std::string& why) {
  core_->archive().GivenUp(save.writer.job(), save.step, why);
  const absl::Status status =
      core_->archive().With(save.writer.job(), save.spec.checkpoint().dir(),
                            [&](CheckpointRoot* root) { return root->Abort(staging); });
  if (!status.ok()) {
    LogWarning("{} stays until the next start: {}", staging, std::string(status.message()));
  }
}

}  // namespace moesaic
