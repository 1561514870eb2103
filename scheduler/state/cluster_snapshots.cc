// ClusterState: events of snapshots and commits, and what follows from them.
#include <fmt/format.h>

#include "scheduler/state/cluster_state.h"

namespace moesaic {

absl::Status ClusterState::On(const SnapshotReported& event) {
  const absl::StatusOr<Job*> checked = CheckWorker(event.report.worker());
  if (!checked.ok()) return checked.status();
  Job* job = *checked;
  if (job->live->exit_code) return absl::OkStatus();
  const int rank = static_cast<int>(event.report.worker().rank());
  const std::string& node = job->live->table().ranks(rank).node();
  if (job->live->awaited.contains(node)) {
    return absl::UnavailableError(
        fmt::format("the coordinator was restarted, and node {} is not back yet", node));
  }
  const absl::Status status = job->snapshots.Report(event.report, this);
  EndIfStopped(job);
  return status;
}

absl::Status ClusterState::On(const CopiesReported& event) {
  const absl::StatusOr<Node*> node = FindNode(event.agent, event.incarnation);
  if (!node.ok()) return node.status();
  Job* job = FindJob(event.report.job());
  if (job == nullptr || job->ended()) {
    return absl::FailedPreconditionError(
        fmt::format("stale copies: job {} has ended", event.report.job()));
  }
  return job->snapshots.Copied(event.agent, event.report, this);
}

absl::Status ClusterState::On(const CheckpointStaged& event) {
  Job* job = FindJob(event.job);
  if (job == nullptr || job->ended()) {
    if (event.status.ok()) out_.actions.push_back(DiscardStaging{event.job, event.staging});
    return absl::OkStatus();
  }
  job->snapshots.Staged(event, this);
  FinishIfClean(job);
  return absl::OkStatus();
}

absl::Status ClusterState::On(const ShardsReported& event) {
  const absl::StatusOr<Node*> node = FindNode(event.agent, event.incarnation);
  if (!node.ok()) return node.status();
  Job* job = FindJob(event.report.job());
  if (job == nullptr || job->ended()) {
    return absl::FailedPreconditionError(
        fmt::format("stale shards: job {} has ended", event.report.job()));
  }
  const absl::Status status = job->snapshots.Persisted(event.agent, event.report, this);
  if (status.ok()) FinishIfClean(job);
  return status;
}

absl::Status ClusterState::On(const CommitFinished& event) {
  Job* job = FindJob(event.job);
  if (job == nullptr || job->ended()) {
    return absl::FailedPreconditionError(fmt::format("stale commit of job {}", event.job));
  }
  const absl::StatusOr<bool> committed = job->snapshots.Committed(event, this);
  if (!committed.ok()) return committed.status();
  if (*committed) RecordCommit(job, event.step, event.path);
  FinishIfClean(job);
  return absl::OkStatus();
}

absl::Status ClusterState::On(const StepCommitted& event) {
  Job* job = FindJob(event.job);
  if (job == nullptr || job->ended()) {
    return absl::FailedPreconditionError(fmt::format("stale commit of job {}", event.job));
  }
  job->snapshots.CommittedElsewhere(event.step, this);
  RecordCommit(job, event.step, event.path);
  FinishIfClean(job);
  return absl::OkStatus();
}

void ClusterState::RecordCommit(Job* job, uint64_t step, const std::string& path) {
  JobStatus* status = job->record.mutable_status();
  if (step >= status->committed_step()) {  // an older one may come after it
    status->set_committed_step(step);
    status->set_committed_path(path);
    status->set_committed_unix_ns(absl::ToUnixNanos(now_));
    Transition(job, status->state(), std::string(status->reason()));
  }
  Note(job, fmt::format("step {} is saved in {}", step, path));
}

void ClusterState::FollowSnapshots(Job* job) {
  if (job->ended()) return;
  const auto memory = job->snapshots.record();
  const MemoryRecord& known = job->record.memory();
  const bool changed = memory ? memory->step() != known.step() ||
                                    memory->generation() != known.generation()
                              : job->record.has_memory();
  if (changed) {
    job->record.clear_memory();
    if (memory) *job->record.mutable_memory() = *memory;
    job->record.mutable_status()->set_memory_step(memory ? memory->step() : 0);
    Save(job);
  }
  if (job->live == nullptr) return;
  Control control = job->live->control;
  job->snapshots.FillControl(&control);
  if (control.SerializeAsString() == job->live->control.SerializeAsString()) return;
  job->live->control = std::move(control);
  PushControlOf(job);
}

}  // namespace moesaic
