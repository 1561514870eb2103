#include "scheduler/state/job_snapshots.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "absl/status/statusor.h"

namespace moesaic {
namespace {

// A peer that takes longer to copy a snapshot has failed to.
constexpr absl::Duration kCopyTimeout = absl::Minutes(1);

// The last step is all there is to show for the run: its write is tried again so many times before
// its ranks would have to train it anew.
constexpr int kFinalTries = 5;

}  // namespace

// ---- Generations.
// --------------------------------------------------------------------------------

void JobSnapshots::Begin(SnapshotOrigin origin, uint64_t restored, uint64_t committed,
                         SnapshotEdge* edge) {
  std::vector<uint64_t> later;
  for (const auto& [step, snapshot] : steps_) {
    if (step > restored) later.push_back(step);
  }
  for (auto step = later.rbegin(); step != later.rend(); ++step) {
    GiveUp(*step, fmt::format("generation {} starts from step {}", origin.generation, restored),
           edge);
    steps_.erase(*step);
  }
  origin_ = std::make_shared<const SnapshotOrigin>(std::move(origin));
  committed_ = committed;
  aborted_ = 0;
  Prune(edge);
}

void JobSnapshots::Recall(SnapshotOrigin origin, const MemoryRecord& memory, uint64_t committed) {
  origin_ = std::make_shared<const SnapshotOrigin>(std::move(origin));
  committed_ = committed;
  if (memory.step() == 0) return;
  Snapshot& snapshot = steps_[memory.step()];
  SnapshotOrigin maker;
  maker.generation = memory.generation();
  maker.layout = memory.layout();
  maker.trajectory_changes = origin_->trajectory_changes;
  snapshot.origin = memory.generation() == origin_->generation
                        ? origin_
                        : std::make_shared<const SnapshotOrigin>(std::move(maker));
  snapshot.holders.resize(memory.ranks());
  snapshot.state = memory.state();
  snapshot.whole = true;
  if (memory.step() <= committed) snapshot.disk = Disk::kDone;
}

void JobSnapshots::EndCollecting(SnapshotEdge* edge) {
  std::vector<uint64_t> unfinished;
  for (const auto& [step, snapshot] : steps_) {
    if (!snapshot.whole) unfinished.push_back(step);
  }
  for (const uint64_t step : unfinished) {
    GiveUp(step, "its generation ended before all ranks had copied", edge);
  }
}

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

void JobSnapshots::Distrust(uint64_t step, SnapshotEdge* edge) {
  for (auto it = steps_.lower_bound(step); it != steps_.end();) {
    const uint64_t at = it->first;
    if (it->second.disk == Disk::kCommitting) {
      for (auto& parts : it->second.holders) parts.clear();
      ++it;
      continue;
    }
    GiveUp(at, "its holders did not have it", edge);
    steps_.erase(at);
    it = steps_.upper_bound(at);
  }
  Prune(edge);
}

void JobSnapshots::Tick(SnapshotEdge* edge) {
  std::vector<uint64_t> slow;
  for (auto& [step, snapshot] : steps_) {
    if (snapshot.disk == Disk::kPersisting && edge->Now() > snapshot.since + persist_timeout_) {
      slow.push_back(step);
    }
    if (!snapshot.copiers.empty() && edge->Now() > snapshot.copying_since + kCopyTimeout) {
      snapshot.copiers.clear();
      edge->Tell(spec_.name(), fmt::format("the copies of step {} took too long", step));
    }
  }
  for (const uint64_t step : slow) GiveUp(step, "the agents took too long to write it", edge);
  Prune(edge);
  Pump(edge);
}

// ---- From the ranks to memory.
// -------------------------------------------------------------------

bool JobSnapshots::Due(uint64_t step) const {
  const uint64_t every = spec_.checkpoint().every_steps();
  return step == spec_.train().steps() || (every > 0 && step % every == 0);
}

JobSnapshots::Snapshot* JobSnapshots::At(uint64_t step) {
  const auto found = steps_.find(step);
  return found == steps_.end() ? nullptr : &found->second;
}

absl::Status JobSnapshots::Report(const SnapshotReport& report, SnapshotEdge* edge) {
  const uint64_t step = report.step();
  const uint32_t rank = report.worker().rank();
  if (report.buffer() > 1) return absl::InvalidArgumentError("a rank has buffers 0 and 1");
  if (step <= aborted_) {
    return absl::AbortedError(fmt::format("the snapshot of step {} was given up", step));
  }
  // After a restart a newer one may be known already: its agents told of it.
  if (step <= std::max(committed_, newest_whole())) return absl::OkStatus();
  Snapshot& snapshot = steps_[step];
  if (snapshot.origin == nullptr) {
    snapshot.origin = origin_;
    snapshot.holders.resize(origin_->rank_nodes.size());
  }
  if (!report.error().empty()) {
    GiveUp(step, fmt::format("rank {}: {}", rank, report.error()), edge);
    return absl::OkStatus();
  }
  const std::string& node = origin_->rank_nodes[rank];
  if (edge->Agent(node) == nullptr) {
    GiveUp(step, fmt::format("node {}, which holds rank {}'s part, is gone", node, rank), edge);
    return absl::OkStatus();
  }
  snapshot.holders[rank][node] = {
      fmt::format("{}.{}", origin_->arenas[rank], report.buffer()), false};
  if (report.state().step() == step) snapshot.state = report.state();
  if (HasAllParts(snapshot)) BecomeWhole(step, edge);
  return absl::OkStatus();
}

bool JobSnapshots::HasAllParts(const Snapshot& snapshot) {
  return std::none_of(snapshot.holders.begin(), snapshot.holders.end(),
                      [](const auto& parts) { return parts.empty(); });
}

void JobSnapshots::BecomeWhole(uint64_t step, SnapshotEdge* edge) {
  Snapshot* snapshot = At(step);
  snapshot->whole = true;
  if (step > committed_ && Due(step)) snapshot->disk = Disk::kQueued;
  StartCopies(step, snapshot, edge);
  Prune(edge);
  Pump(edge);
}

JobSnapshots::Snapshot* JobSnapshots::Claimed(const HeldSnapshot& held) {
  Snapshot* snapshot = At(held.step());
  if (snapshot == nullptr && origin_ != nullptr && held.generation() == origin_->generation &&
      held.ranks() == origin_->rank_nodes.size() && held.step() > newest_whole() &&
      held.step() > aborted_ && !held.copy()) {
    // Its ranks' reports found no coordinator.
    snapshot = &steps_[held.step()];
    snapshot->origin = origin_;
    snapshot->holders.resize(held.ranks());
  }
  const bool same = snapshot != nullptr && snapshot->origin->generation == held.generation() &&
                    held.rank() < snapshot->holders.size() &&
                    held.ranks() == snapshot->holders.size();
  return same ? snapshot : nullptr;
}

void JobSnapshots::Hold(const std::string& node,
                        const google::protobuf::RepeatedPtrField<HeldSnapshot>& all,
                        SnapshotEdge* edge) {
  told_.erase(node);
  Forget(node);
  for (const HeldSnapshot& held : all) {
    Snapshot* snapshot = held.job() == spec_.name() ? Claimed(held) : nullptr;
    if (snapshot == nullptr) continue;
    snapshot->holders[held.rank()][node] = {held.path(), held.copy()};
    if (held.state().step() == held.step()) snapshot->state = held.state();
  }
  // Nothing is dropped before all that the node holds is known.
  uint64_t newest = 0;
  for (auto& [step, snapshot] : steps_) {
    if (!snapshot.whole && HasAllParts(snapshot)) {
      snapshot.whole = true;
      newest = step;
    }
    if (snapshot.disk == Disk::kNo && step > committed_ && Due(step) &&
        Complete(snapshot, *edge)) {
      snapshot.disk = Disk::kQueued;
    }
  }
  if (newest != 0) StartCopies(newest, At(newest), edge);
  MoveWriters(node, edge);
  Prune(edge);
  Pump(edge);
}

void JobSnapshots::StartCopies(uint64_t step, Snapshot* snapshot, SnapshotEdge* edge) {
  if (!spec_.checkpoint().peer_copies()) return;
  std::vector<std::string> ring;
  for (const std::string& node : snapshot->origin->nodes) {
    if (edge->Agent(node) != nullptr && !edge->Agent(node)->address().empty()) ring.push_back(node);
  }
  for (size_t i = 0; i < ring.size(); ++i) {
    size_t peer = (i + 1) % ring.size();
    while (peer != i && !edge->Stays(ring[peer])) peer = (peer + 1) % ring.size();
    if (peer == i) continue;
    AgentCommand command;
    ReplicateSnapshot* replicate = command.mutable_replicate();
    replicate->set_job(spec_.name());
    replicate->set_generation(snapshot->origin->generation);
    replicate->set_step(step);
    replicate->set_from(edge->Agent(ring[i])->address());
    replicate->set_token(snapshot->origin->token);
    for (size_t rank = 0; rank < snapshot->holders.size(); ++rank) {
      const auto own = snapshot->holders[rank].find(ring[i]);
      if (own != snapshot->holders[rank].end() && !own->second.copy) {
        replicate->add_ranks(static_cast<uint32_t>(rank));
      }
    }
    if (replicate->ranks().empty()) continue;
    snapshot->copiers.insert(ring[peer]);
    snapshot->copying_since = edge->Now();
    edge->Do(SendToAgent{ring[peer], std::move(command)});
  }
}

absl::Status JobSnapshots::Copied(const std::string& node, const SnapshotReplicated& report,
                                  SnapshotEdge* edge) {
  Snapshot* snapshot = At(report.step());
  if (snapshot == nullptr || snapshot->origin->generation != report.generation() ||
      !snapshot->copiers.contains(node)) {
    return absl::FailedPreconditionError(
        fmt::format("stale copies of step {} of generation {}", report.step(),
                    report.generation()));
  }
  snapshot->copiers.erase(node);
  if (!report.error().empty()) {
    edge->Tell(spec_.name(), fmt::format("node {} has no copy of step {}: {}", node, report.step(),
                                         report.error()));
  } else {
    for (const HeldSnapshot& copy : report.copies()) {
      if (copy.step() != report.step() || copy.rank() >= snapshot->holders.size()) continue;
      snapshot->holders[copy.rank()].try_emplace(node, Part{copy.path(), true});
    }
  }
  Prune(edge);
  return absl::OkStatus();
}

void JobSnapshots::Lose(const std::string& node, SnapshotEdge* edge) {
  told_.erase(node);
  Forget(node);
  std::vector<uint64_t> lost;
  for (const auto& [step, snapshot] : steps_) {
    const bool waits = snapshot.disk == Disk::kQueued || snapshot.disk == Disk::kStaging;
    if (snapshot.whole ? waits && !Complete(snapshot, *edge) : IsMine(node)) lost.push_back(step);
  }
  for (auto step = lost.rbegin(); step != lost.rend(); ++step) {
    GiveUp(*step, fmt::format("node {} was lost", node), edge);
  }
  MoveWriters(node, edge);
  Prune(edge);
}

void JobSnapshots::Forget(const std::string& node) {
  for (auto& [step, snapshot] : steps_) {
    snapshot.copiers.erase(node);
    for (auto& parts : snapshot.holders) parts.erase(node);
  }
}

// What the node was to write and has not, somebody writes: it, if it has it, as its answer may have
// been lost.
void JobSnapshots::MoveWriters(const std::string& node, SnapshotEdge* edge) {
  std::vector<uint64_t> stuck;
  for (auto& [step, snapshot] : steps_) {
    if (snapshot.disk != Disk::kPersisting) continue;
    bool moved = false;
    for (size_t rank = 0; rank < snapshot.writers.size(); ++rank) {
      const bool its = snapshot.writers[rank] == node &&
                       !snapshot.shards.contains(static_cast<uint32_t>(rank));
      if (its) snapshot.writers[rank].clear();
      moved |= its;
    }
    if (moved && !SendPersist(step, &snapshot, edge)) stuck.push_back(step);
  }
  for (const uint64_t step : stuck) {
    GiveUp(step, fmt::format("node {} does not write it", node), edge);
  }
}

bool JobSnapshots::IsMine(const std::string& node) const {
  return origin_ != nullptr &&
         std::find(origin_->nodes.begin(), origin_->nodes.end(), node) != origin_->nodes.end();
}

// ---- From memory to disk.
// -----------------------------------------------------------------------

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

// ---- What is kept.
// ------------------------------------------------------------------------------

bool JobSnapshots::Complete(const Snapshot& snapshot, const SnapshotEdge& edge) {
  return snapshot.whole &&
         std::all_of(snapshot.holders.begin(), snapshot.holders.end(), [&](const auto& parts) {
           return std::any_of(parts.begin(), parts.end(), [&](const auto& part) {
             return edge.Agent(part.first) != nullptr;
           });
         });
}

bool JobSnapshots::Doubled(const Snapshot& snapshot) {
  return snapshot.whole && std::all_of(snapshot.holders.begin(), snapshot.holders.end(),
                                       [](const auto& parts) { return parts.size() >= 2; });
}

// Those on their way to disk, the newest, and while it is being copied also the one before it:
// a node that dies meanwhile takes parts of the newest with it.
std::set<uint64_t> JobSnapshots::Needed() const {
  std::set<uint64_t> needed;
  bool newest = true;
  bool covered = false;
  for (auto it = steps_.rbegin(); it != steps_.rend(); ++it) {
    const auto& [step, snapshot] = *it;
    if (!snapshot.whole || snapshot.OnItsWay()) needed.insert(step);
    if (!snapshot.whole || covered) continue;
    const bool lost = std::any_of(snapshot.holders.begin(), snapshot.holders.end(),
                                  [](const auto& parts) { return parts.empty(); });
    if (newest || !lost) needed.insert(step);
    covered = !lost && (!newest || Doubled(snapshot) || snapshot.copiers.empty());
    newest = false;
  }
  return needed;
}

void JobSnapshots::Prune(SnapshotEdge* edge) {
  // Ranks take a buffer for free that is older than what is whole or given up, and not kept.
  const uint64_t settled = std::max(newest_whole(), aborted_);
  std::erase_if(steps_,
                [&](const auto& entry) { return !entry.second.whole && entry.first <= settled; });
  const std::set<uint64_t> needed = Needed();
  std::erase_if(steps_, [&](const auto& entry) { return !needed.contains(entry.first); });
  if (origin_ == nullptr) return;
  AgentCommand command;
  KeepSnapshots* keep = command.mutable_keep();
  keep->set_job(spec_.name());
  std::set<std::string> agents(origin_->nodes.begin(), origin_->nodes.end());
  for (const auto& [step, snapshot] : steps_) {
    auto* kept = keep->add_kept();
    kept->set_generation(snapshot.origin->generation);
    kept->set_step(step);
    for (const auto& parts : snapshot.holders) {
      for (const auto& [node, part] : parts) agents.insert(node);
    }
  }
  for (const auto& [node, text] : told_) agents.insert(node);
  const std::string text = keep->SerializeAsString();
  for (const std::string& node : agents) {
    if (edge->Agent(node) == nullptr) continue;
    const auto told = told_.find(node);
    if (told == told_.end() ? keep->kept().empty() : told->second == text) continue;
    told_[node] = text;
    edge->Do(SendToAgent{node, command});
  }
}

// ---- Questions.
// --------------------------------------------------------------------------------

void JobSnapshots::FillControl(Control* control) const {
  control->set_committed_step(committed_);
  control->set_aborted_snapshot_step(aborted_);
  control->set_memory_step(newest_whole());
  control->clear_kept_steps();
  for (const auto& [step, snapshot] : steps_) {
    if (snapshot.whole && snapshot.origin == origin_) control->add_kept_steps(step);
  }
}

uint64_t JobSnapshots::newest_whole() const {
  for (auto it = steps_.rbegin(); it != steps_.rend(); ++it) {
    if (it->second.whole) return it->first;
  }
  return 0;
}

std::optional<MemoryRecord> JobSnapshots::record() const {
  const auto found = steps_.find(newest_whole());
  if (found == steps_.end() || !found->second.state) return std::nullopt;
  MemoryRecord record;
  record.set_generation(found->second.origin->generation);
  record.set_step(found->first);
  record.set_ranks(static_cast<uint32_t>(found->second.holders.size()));
  record.set_layout(found->second.origin->layout);
  *record.mutable_state() = *found->second.state;
  return record;
}

std::optional<JobSnapshots::Restorable> JobSnapshots::Newest(const SnapshotEdge& edge) const {
  for (auto it = steps_.rbegin(); it != steps_.rend(); ++it) {
    const auto& [step, snapshot] = *it;
    if (!snapshot.state || !Complete(snapshot, edge)) continue;
    Restorable found;
    found.step = step;
    found.record.set_generation(snapshot.origin->generation);
    found.record.set_step(step);
    found.record.set_ranks(static_cast<uint32_t>(snapshot.holders.size()));
    found.record.set_layout(snapshot.origin->layout);
    *found.record.mutable_state() = *snapshot.state;
    for (size_t rank = 0; rank < snapshot.holders.size(); ++rank) {
      const auto& parts = snapshot.holders[rank];
      const bool answered = std::any_of(parts.begin(), parts.end(), [&](const auto& part) {
        return edge.Answers(part.first);
      });
      for (const auto& [node, part] : parts) {
        if (answered ? !edge.Answers(node) : edge.Agent(node) == nullptr) continue;
        SnapshotSource& source = found.sources.emplace_back();
        source.set_node(node);
        source.set_address(edge.Agent(node)->address());
        HeldSnapshot* held = source.mutable_snapshot();
        held->set_job(spec_.name());
        held->set_generation(snapshot.origin->generation);
        held->set_step(step);
        held->set_rank(static_cast<uint32_t>(rank));
        held->set_ranks(found.record.ranks());
        held->set_path(part.path);
        held->set_copy(part.copy);
        if (rank == 0) *held->mutable_state() = *snapshot.state;
      }
    }
    return found;
  }
  return std::nullopt;
}

bool JobSnapshots::Pending() const {
  return std::any_of(steps_.begin(), steps_.end(),
                     [](const auto& entry) { return entry.second.OnItsWay(); });
}

bool JobSnapshots::Committing(uint64_t after) const {
  return std::any_of(steps_.begin(), steps_.end(), [&](const auto& entry) {
    return entry.first > after && entry.second.disk == Disk::kCommitting;
  });
}

bool JobSnapshots::NeedsNode(const std::string& node, const SnapshotEdge& edge) const {
  for (const auto& [step, snapshot] : steps_) {
    if (snapshot.disk == Disk::kPersisting) {
      for (size_t rank = 0; rank < snapshot.writers.size(); ++rank) {
        if (snapshot.writers[rank] == node &&
            !snapshot.shards.contains(static_cast<uint32_t>(rank)))
          return true;
      }
    }
    if (!snapshot.whole || snapshot.disk == Disk::kFailed || step <= committed_ ||
        snapshot.disk == Disk::kCommitting || snapshot.disk == Disk::kPersisting) {
      continue;
    }
    for (const auto& parts : snapshot.holders) {
      if (!parts.contains(node)) continue;
      if (std::none_of(parts.begin(), parts.end(),
                       [&](const auto& part) { return edge.Stays(part.first); })) {
        return true;
      }
    }
  }
  return false;
}

std::string JobSnapshots::DescribePending() const {
  for (const auto& [step, snapshot] : steps_) {
    if (snapshot.OnItsWay()) return fmt::format("step {}", step);
  }
  return "nothing";
}

std::string JobSnapshots::DebugString() const {
  std::string text = fmt::format("committed {} aborted {}\n", committed_, aborted_);
  for (const auto& [step, snapshot] : steps_) {
    text += fmt::format("step {} of {}: whole {} disk {} staging {} shards {} copiers {}\n", step,
                        snapshot.origin->generation, snapshot.whole,
                        static_cast<int>(snapshot.disk), snapshot.staging, snapshot.shards.size(),
                        snapshot.copiers.size());
    for (size_t rank = 0; rank < snapshot.holders.size(); ++rank) {
      for (const auto& [node, part] : snapshot.holders[rank]) {
        text += fmt::format("  {} on {}: {} {}\n", rank, node, part.path, part.copy);
      }
    }
  }
  return text;
}

}  // namespace moesaic
