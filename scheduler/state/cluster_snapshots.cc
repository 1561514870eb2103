// ClusterState: from the snapshots in the ranks' arenas to a committed checkpoint. One is written
// at a time; a second may wait, in the other buffer. A snapshot that fails is given up, never
// waited for by training.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "scheduler/state/cluster_state.h"

namespace moesaic {

absl::Status ClusterState::On(const SnapshotReported& event) {
  const absl::StatusOr<Job*> checked = CheckWorker(event.report.worker());
  if (!checked.ok()) return checked.status();
  Job* job = *checked;
  Generation* live = job->live.get();
  const uint64_t step = event.report.step();
  if (live->lost_node || step <= live->control.aborted_snapshot_step()) {
    return absl::AbortedError(fmt::format("the snapshot of step {} was given up", step));
  }
  if (event.report.buffer() > 1) return absl::InvalidArgumentError("a rank has buffers 0 and 1");
  if (live->exit_code || step <= live->control.committed_step()) return absl::OkStatus();
  Snapshot& snapshot = live->snapshots[step];
  if (snapshot.phase != Snapshot::kCollecting) return absl::OkStatus();
  if (!event.report.error().empty()) {
    GiveUpSnapshot(job, step,
                   fmt::format("rank {}: {}", event.report.worker().rank(), event.report.error()));
    return absl::OkStatus();
  }
  snapshot.buffers[event.report.worker().rank()] = event.report.buffer();
  if (snapshot.buffers.size() == live->ranks.size()) snapshot.phase = Snapshot::kQueued;
  PumpSnapshots(job);
  return absl::OkStatus();
}

absl::StatusOr<ClusterState::Snapshot*> ClusterState::FindSnapshot(const std::string& name,
                                                                   uint64_t generation,
                                                                   uint64_t step,
                                                                   Snapshot::Phase phase) {
  Job* job = FindJob(name);
  if (job != nullptr && job->live != nullptr && job->live->number == generation) {
    const auto found = job->live->snapshots.find(step);
    if (found != job->live->snapshots.end() && found->second.phase == phase) return &found->second;
  }
  return absl::FailedPreconditionError(
      fmt::format("stale snapshot: step {} of generation {} of job {}", step, generation, name));
}

void ClusterState::PumpSnapshots(Job* job) {
  for (auto& [step, snapshot] : job->live->snapshots) {
    if (snapshot.phase > Snapshot::kQueued) return;
  }
  for (auto& [step, snapshot] : job->live->snapshots) {
    if (snapshot.phase != Snapshot::kQueued) continue;
    snapshot.phase = Snapshot::kStaging;
    out_.actions.push_back(StageCheckpoint{job->name(), job->live->number, step, job->spec()});
    return;
  }
}

absl::Status ClusterState::On(const CheckpointStaged& event) {
  const absl::StatusOr<Snapshot*> snapshot =
      FindSnapshot(event.job, event.generation, event.step, Snapshot::kStaging);
  if (!snapshot.ok()) {
    if (event.status.ok()) out_.actions.push_back(DiscardStaging{event.job, event.staging});
    return absl::OkStatus();
  }
  Job* job = FindJob(event.job);
  if (!event.status.ok()) {
    GiveUpSnapshot(job, event.step, std::string(event.status.message()));
    FinishIfClean(job);
    return absl::OkStatus();
  }
  (*snapshot)->phase = Snapshot::kPersisting;
  (*snapshot)->staging = event.staging;
  (*snapshot)->since = now_;
  SendPersist(job, event.step, **snapshot);
  return absl::OkStatus();
}

void ClusterState::SendPersist(Job* job, uint64_t step, const Snapshot& snapshot) {
  std::map<std::string, AgentCommand> commands;
  for (const RankEntry& entry : job->live->table.ranks()) {
    PersistSnapshot* persist = commands[entry.node()].mutable_persist();
    persist->set_job(job->name());
    persist->set_generation(job->live->number);
    persist->set_step(step);
    persist->set_staging(snapshot.staging);
    RankArena* arena = persist->add_arenas();
    arena->set_rank(entry.rank());
    arena->set_path(fmt::format("{}.{}", entry.arena_path(), snapshot.buffers.at(entry.rank())));
  }
  for (auto& [agent, command] : commands) Send(agent, std::move(command));
}

absl::Status ClusterState::On(const ShardsReported& event) {
  const absl::StatusOr<Node*> node = FindNode(event.agent, event.incarnation);
  if (!node.ok()) return node.status();
  const ShardsPersisted& report = event.report;
  const absl::StatusOr<Snapshot*> found =
      FindSnapshot(report.job(), report.generation(), report.step(), Snapshot::kPersisting);
  if (!found.ok()) return found.status();
  Snapshot* snapshot = *found;
  Job* job = FindJob(report.job());
  const RankTable& table = job->live->table;
  if (report.staging() != snapshot->staging ||
      report.rank() >= static_cast<uint32_t>(table.ranks_size()) ||
      table.ranks(report.rank()).node() != event.agent) {
    return absl::FailedPreconditionError(
        fmt::format("stale shards of rank {} from {}", report.rank(), event.agent));
  }
  if (!report.error().empty()) {
    GiveUpSnapshot(job, report.step(), fmt::format("rank {}: {}", report.rank(), report.error()));
    FinishIfClean(job);
    return absl::OkStatus();
  }
  snapshot->shards[report.rank()] = report;
  if (snapshot->shards.size() < job->live->ranks.size()) return absl::OkStatus();
  snapshot->phase = Snapshot::kCommitting;
  CommitCheckpoint commit{job->name(),
                          job->live->number,
                          report.step(),
                          snapshot->staging,
                          job->spec(),
                          job->live->layout,
                          job->live->trajectory_changes,
                          job->live->nodes,
                          {}};
  for (auto& [rank, shards] : snapshot->shards) commit.shards.push_back(std::move(shards));
  out_.actions.push_back(std::move(commit));
  return absl::OkStatus();
}

absl::Status ClusterState::On(const CommitFinished& event) {
  const absl::StatusOr<Snapshot*> snapshot =
      FindSnapshot(event.job, event.generation, event.step, Snapshot::kCommitting);
  if (!snapshot.ok()) return snapshot.status();
  Job* job = FindJob(event.job);
  if (!event.status.ok()) {
    GiveUpSnapshot(job, event.step, std::string(event.status.message()));
    FinishIfClean(job);
    return absl::OkStatus();
  }
  Generation* live = job->live.get();
  live->snapshots.erase(event.step);
  live->control.set_committed_step(event.step);
  PushControlOf(job);
  JobStatus* status = job->record.mutable_status();
  status->set_committed_step(event.step);
  status->set_committed_path(event.path);
  Transition(job, status->state(), std::string(status->reason()));
  Note(job, fmt::format("step {} is saved in {}", event.step, event.path));
  PumpSnapshots(job);
  FinishIfClean(job);
  return absl::OkStatus();
}

void ClusterState::GiveUpSnapshot(Job* job, uint64_t step, const std::string& why) {
  Generation* live = job->live.get();
  const auto found = live->snapshots.find(step);
  if (!found->second.staging.empty()) {
    out_.actions.push_back(DiscardStaging{job->name(), found->second.staging});
  }
  live->snapshots.erase(found);
  live->control.set_aborted_snapshot_step(std::max(live->control.aborted_snapshot_step(), step));
  PushControlOf(job);
  Note(job, fmt::format("the checkpoint of step {} was given up: {}", step, why));
  PumpSnapshots(job);
}

void ClusterState::GiveUpSnapshotsOf(Job* job, const std::string& agent, const std::string& why) {
  std::vector<uint64_t> lost;
  for (const auto& [step, snapshot] : job->live->snapshots) {
    if (snapshot.phase == Snapshot::kCommitting) continue;
    for (const RankEntry& entry : job->live->table.ranks()) {
      if (entry.node() == agent && !snapshot.shards.contains(entry.rank())) {
        lost.push_back(step);
        break;
      }
    }
  }
  // Newest first, so that none of the lost is started in place of another.
  for (auto step = lost.rbegin(); step != lost.rend(); ++step) GiveUpSnapshot(job, *step, why);
}

void ClusterState::GiveUpSlow(Job* job) {
  std::vector<uint64_t> slow;
  for (const auto& [step, snapshot] : job->live->snapshots) {
    if (snapshot.phase == Snapshot::kPersisting &&
        now_ > snapshot.since + options_.persist_timeout) {
      slow.push_back(step);
    }
  }
  for (const uint64_t step : slow) {
    GiveUpSnapshot(job, step, "the agents took too long to write it");
  }
}

void ClusterState::GiveUpUnfinished(Job* job, const std::string& why) {
  std::vector<uint64_t> steps;
  for (const auto& [step, snapshot] : job->live->snapshots) {
    if (snapshot.phase == Snapshot::kCollecting) steps.push_back(step);
  }
  for (const uint64_t step : steps) GiveUpSnapshot(job, step, why);
}

}  // namespace moesaic
