// JobSnapshots: from memory to disk.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "absl/status/statusor.h"
#include "scheduler/state/job_snapshots.h"

namespace moesaic {
namespace {

// The last step is all there is to show for the run: its write is tried again so many times before
// its ranks would have to train it anew.
constexpr int kFinalTries = 5;

}  // namespace

void JobSnapshots::WantNewest(SnapshotEdge* edge) {
  const uint64_t step = newest_whole();
  if (step <= committed_) return;
  Snapshot* snapshot = At(step);
  const bool again = snapshot->disk == Disk::kFailed && retries_ < kFinalTries &&
                     step == spec_.train().steps();
  if ((snapshot->disk == Disk::kNo || again) && Complete(*snapshot, *edge)) {
    if (again) snapshot->not_before = edge->Now() + absl::Seconds(1 << retries_++);
    snapshot->disk = Disk::kQueued;
  }
  Pump(edge);
}

void JobSnapshots::GiveUpUncommitted(const std::string& why, SnapshotEdge* edge) {
  std::vector<uint64_t> given_up;
  for (const auto& [step, snapshot] : steps_) {
    if (snapshot.OnItsWay() && snapshot.disk != Disk::kCommitting) given_up.push_back(step);
  }
  // Newest first, so that none of them is started in place of another.
  for (auto step = given_up.rbegin(); step != given_up.rend(); ++step) GiveUp(*step, why, edge);
}

void JobSnapshots::Pump(SnapshotEdge* edge) {
  for (const auto& [step, snapshot] : steps_) {
    if (snapshot.OnItsWay() && snapshot.disk != Disk::kQueued) return;
  }
  for (auto& [step, snapshot] : steps_) {
    if (snapshot.disk != Disk::kQueued || edge->Now() < snapshot.not_before) continue;
    if (step < committed_) {  // a newer one went first
      snapshot.disk = Disk::kNo;
      continue;
    }
    if (!Complete(snapshot, *edge)) {
      GiveUp(step, "a part of it is gone", edge);
      return;
    }
    snapshot.disk = Disk::kStaging;
    edge->Do(StageCheckpoint{spec_.name(), snapshot.origin->generation, step, spec_});
    return;
  }
}

JobSnapshots::Steps::iterator JobSnapshots::Find(uint64_t generation, uint64_t step, Disk disk) {
  const auto found = steps_.find(step);
  const bool right = found != steps_.end() && found->second.origin->generation == generation &&
                     found->second.disk == disk;
  return right ? found : steps_.end();
}

void JobSnapshots::Staged(const CheckpointStaged& event, SnapshotEdge* edge) {
  const auto found = Find(event.generation, event.step, Disk::kStaging);
  if (found == steps_.end()) {
    if (event.status.ok()) edge->Do(DiscardStaging{event.job, event.staging});
    return;
  }
  if (!event.status.ok()) {
    GiveUp(event.step, std::string(event.status.message()), edge);
    return;
  }
  Snapshot* snapshot = &found->second;
  snapshot->disk = Disk::kPersisting;
  snapshot->staging = event.staging;
  snapshot->since = edge->Now();
  snapshot->shards.clear();
  snapshot->writers.assign(snapshot->holders.size(), "");
  if (!SendPersist(event.step, snapshot, edge)) GiveUp(event.step, "its holders are gone", edge);
}

// Has somebody write every rank's part that nobody writes yet; false: a part has no holder.
bool JobSnapshots::SendPersist(uint64_t step, Snapshot* snapshot, SnapshotEdge* edge) {
  std::map<std::string, AgentCommand> commands;
  for (size_t rank = 0; rank < snapshot->holders.size(); ++rank) {
    if (!snapshot->writers[rank].empty()) continue;
    const auto& parts = snapshot->holders[rank];
    auto holder = parts.end();
    for (auto it = parts.begin(); it != parts.end(); ++it) {
      if (edge->Agent(it->first) == nullptr) continue;
      if (holder == parts.end() || (holder->second.copy && !it->second.copy)) holder = it;
    }
    if (holder == parts.end()) return false;
    snapshot->writers[rank] = holder->first;
    PersistSnapshot* persist = commands[holder->first].mutable_persist();
    persist->set_job(spec_.name());
    persist->set_generation(snapshot->origin->generation);
    persist->set_step(step);
    persist->set_staging(snapshot->staging);
    RankArena* arena = persist->add_arenas();
    arena->set_rank(static_cast<uint32_t>(rank));
    arena->set_path(holder->second.path);
  }
  for (auto& [node, command] : commands) edge->Do(SendToAgent{node, std::move(command)});
  return true;
}

absl::Status JobSnapshots::Persisted(const std::string& node, const ShardsPersisted& report,
                                     SnapshotEdge* edge) {
  const auto found = Find(report.generation(), report.step(), Disk::kPersisting);
  if (found == steps_.end() || found->second.staging != report.staging() ||
      report.rank() >= found->second.writers.size() ||
      found->second.writers[report.rank()] != node) {
    return absl::FailedPreconditionError(fmt::format(
        "stale shards: rank {} of step {} of generation {} of job {} from node {}", report.rank(),
        report.step(), report.generation(), report.job(), node));
  }
  if (!report.error().empty()) {
    GiveUp(report.step(), fmt::format("rank {}: {}", report.rank(), report.error()), edge);
    return absl::OkStatus();
  }
  Snapshot* snapshot = &found->second;
  snapshot->shards[report.rank()] = report;
  if (snapshot->shards.size() < snapshot->holders.size()) return absl::OkStatus();
  snapshot->disk = Disk::kCommitting;
  const SnapshotOrigin& origin = *snapshot->origin;
  const std::set<std::string> writers(snapshot->writers.begin(), snapshot->writers.end());
  CommitCheckpoint commit{spec_.name(),
                          origin.generation,
                          report.step(),
                          snapshot->staging,
                          spec_,
                          origin.layout,
                          origin.trajectory_changes,
                          {writers.begin(), writers.end()},
                          {}};
  for (auto& [rank, shards] : snapshot->shards) commit.shards.push_back(std::move(shards));
  edge->Do(std::move(commit));
  return absl::OkStatus();
}

absl::StatusOr<bool> JobSnapshots::Committed(const CommitFinished& event, SnapshotEdge* edge) {
  const auto found = Find(event.generation, event.step, Disk::kCommitting);
  if (found == steps_.end()) {
    return absl::FailedPreconditionError(
        fmt::format("stale commit: step {} of generation {} of job {}", event.step,
                    event.generation, event.job));
  }
  if (!event.status.ok()) {
    GiveUp(event.step, std::string(event.status.message()), edge);
    return false;
  }
  found->second.disk = Disk::kDone;
  found->second.staging.clear();
  committed_ = std::max(committed_, event.step);
  Prune(edge);
  Pump(edge);
  return true;
}

void JobSnapshots::CommittedElsewhere(uint64_t step, SnapshotEdge* edge) {
  committed_ = std::max(committed_, step);
  Prune(edge);
  Pump(edge);
}

void JobSnapshots::GiveUp(uint64_t step, const std::string& why, SnapshotEdge* edge) {
  const auto found = steps_.find(step);
  if (found == steps_.end()) return;
  Snapshot* snapshot = &found->second;
  const bool was_wanted = !snapshot->whole || snapshot->OnItsWay();
  if (!snapshot->staging.empty()) edge->Do(DiscardStaging{spec_.name(), snapshot->staging});
  if (was_wanted) {
    if (snapshot->origin == origin_) aborted_ = std::max(aborted_, step);
    if (snapshot->OnItsWay() || Due(step)) edge->Do(TellGivenUp{spec_.name(), step, why});
    edge->Tell(spec_.name(), fmt::format("the checkpoint of step {} was given up: {}", step, why));
  }
  snapshot->staging.clear();
  snapshot->shards.clear();
  if (snapshot->whole) {
    if (snapshot->disk != Disk::kDone) snapshot->disk = Disk::kFailed;  // it stays in memory
  } else {
    steps_.erase(found);
  }
  Prune(edge);
  Pump(edge);
}

}  // namespace moesaic
