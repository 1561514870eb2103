// JobSnapshots: from the ranks to the memory of their nodes and of peers.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "scheduler/state/job_snapshots.h"

namespace moesaic {

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
}  // namespace moesaic
