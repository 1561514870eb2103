#include "scheduler/state/job_snapshots.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace moesaic {
namespace {

// A peer that takes longer to copy a snapshot has failed to.
constexpr absl::Duration kCopyTimeout = absl::Minutes(1);

}  // namespace

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

// ---- What is kept.
// ----------------------------------------------------------------------------------

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
}  // namespace moesaic
