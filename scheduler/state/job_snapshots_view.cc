// JobSnapshots: what others ask of it.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "scheduler/state/job_snapshots.h"

namespace moesaic {
namespace {

// How far a node can be counted on to be asked for what it holds. One that is to go may be gone
// before the ranks ask, and they would wait for its answer.
enum class Standing { kGone, kSilent, kLeaves, kStays };

Standing StandingOf(const std::string& node, const SnapshotEdge& edge) {
  if (edge.Agent(node) == nullptr) return Standing::kGone;
  if (!edge.Answers(node)) return Standing::kSilent;
  return edge.Stays(node) ? Standing::kStays : Standing::kLeaves;
}

}  // namespace

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
      Standing best = Standing::kGone;
      for (const auto& [node, part] : parts) best = std::max(best, StandingOf(node, edge));
      for (const auto& [node, part] : parts) {
        if (StandingOf(node, edge) != best) continue;
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
