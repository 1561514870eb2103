// ClusterModel: what must hold.
#include <algorithm>

#include "tests/scheduler/state/model/cluster_model.h"
#include "tests/scheduler/state/model/model_log.h"

namespace moesaic {
namespace {

// Silence that the coordinator takes for more than chance; docs/design/generations.md.
constexpr double kSilentShare = 0.4;
constexpr absl::Duration kNotices = absl::Seconds(20);

bool HasDigit(const std::string& text) {
  return text.find_first_of("0123456789") != std::string::npos;
}

}  // namespace

void ClusterModel::Fail(const std::string& why) {
  if (!broken_.empty()) return;
  broken_ = why;
  Log("BROKEN: {}", why);
}

bool ClusterModel::Registered(const std::string& agent) const {
  return registered_.contains(agent);
}

bool ClusterModel::Ended() const {
  return state_ != nullptr && std::all_of(jobs_.begin(), jobs_.end(), [&](const auto& entry) {
           const JobStatus* status = state_->status(entry.first);
           return status != nullptr && HasEnded(status->state());
         });
}

// Whether training passed the one on its way to the other.
bool ClusterModel::IsOnPath(uint64_t earlier, uint64_t later) const {
  while (contents_[later].step > contents_[earlier].step) later = contents_[later].parent;
  return later == earlier;
}

void ClusterModel::CheckStart(const SendToAgent& action) {
  const auto& start = action.command.start();
  JobFacts& facts = jobs_[start.job()];
  const auto durable = records_.find(start.job());
  if (durable == records_.end() || durable->second.live().number() != start.generation()) {
    Fail("M1: a generation is not durable when it starts");
  }
  if (start.generation() < facts.newest_generation) Fail("M1: an older generation starts");
  if (start.generation() == facts.newest_generation) return;
  facts.newest_generation = start.generation();
  Log("  {} g{} starts on {} nodes", start.job(), start.generation(), start.hosts_size());
  for (const auto& [name, standing] : registered_) {
    const Agent& agent = agents_[name];
    const bool silent = timeline_.now() >= standing.renewed + kSilentShare * options_.lease_ttl;
    if (!silent && agent.lives() && agent.running != 0 && agent.running_job == start.job()) {
      Fail("M1: generation " + std::to_string(agent.running) + " still runs on " + name +
           " when " + std::to_string(start.generation()) + " starts");
    }
  }
  for (const HostSlots& host : start.hosts()) {
    if (!Registered(host.node())) Fail("M1: a generation with a node that is not there");
    const Agent& agent = agents_[host.node()];
    if (agent.lives() && agent.running != 0) Fail("M1: a node of a generation is not free");
  }
  CheckRestore(facts, *state_->rank_table(start.job()));
}

// All ranks' parts of one step are there, all of one content, and nothing that is committed is left
// behind.
void ClusterModel::CheckRestore(const JobFacts& facts, const RankTable& table) {
  const RestoreSources& restore = table.restore();
  if (restore.path() != table.restore_path()) Fail("two paths to restore from");
  std::optional<uint64_t> content;
  std::set<uint32_t> parts;
  uint32_t ranks = 0;
  for (const SnapshotSource& source : restore.snapshots()) {
    const Agent& agent = agents_[source.node()];
    ranks = source.snapshot().ranks();
    if (!Registered(source.node())) Fail("a source on a node that is not registered");
    if (registered_[source.node()].incarnation != agent.incarnation()) {  // nobody knows yet
      parts.insert(source.snapshot().rank());
      continue;
    }
    const auto held = agent.memory.find(source.snapshot().path());
    if (held == agent.memory.end() || held->second.held.step() != restore.step() ||
        held->second.held.generation() != source.snapshot().generation() ||
        held->second.held.rank() != source.snapshot().rank()) {
      if (agent.stream != 0) {
        Fail("a source that is not there: " + source.node() + " " +
             source.snapshot().ShortDebugString());
      }
      continue;
    }
    if (content && *content != held->second.content) Fail("sources of several contents");
    content = held->second.content;
    parts.insert(source.snapshot().rank());
  }
  if (restore.snapshots_size() > 0 && parts.size() != ranks && broken_.empty()) {
    Fail("not every part of a snapshot has a source");
  }
  if (restore.snapshots().empty() && restore.step() > 0) {
    const auto stored = facts.disk.find(restore.step());
    if (stored == facts.disk.end()) {
      Fail("to be restored from a step that is not on disk");
      return;
    }
    content = stored->second.content;
  }
  if (restore.step() == 0) content = 0;
  if (facts.disk.empty() || !content) return;
  const auto& [newest, stored] = *facts.disk.rbegin();
  if (restore.step() < newest || !IsOnPath(stored.content, *content)) {
    Fail("C7: step " + std::to_string(newest) + " is on disk, but a generation starts from step " +
         std::to_string(restore.step()) + " beside it");
  }
}

// C11: no buffer is kept that is not one of a rank's two.
void ClusterModel::CheckControl(const PushControl& action) {
  if (action.control.kept_steps_size() > 2) Fail("C11: a third buffer is kept");
  const GenerationPtr generation = Find(action.job, action.control.generation());
  if (generation == nullptr || generation->over) return;
  for (const Rank& rank : generation->ranks) {
    for (const uint64_t step : action.control.kept_steps()) {
      if (rank.alive && agents_[rank.agent].lives() && rank.buffers[0] != step &&
          rank.buffers[1] != step) {
        Fail("C11: step " + std::to_string(step) + " is kept, and a rank does not hold it");
      }
    }
  }
}

// C7: what is committed lies on one line, and what trains now goes on from it.
void ClusterModel::CheckCommit(const CommitCheckpoint& action, uint64_t content) {
  const JobFacts& facts = jobs_[action.job];
  if (contents_[content].step != action.step) Fail("C7: the content of another step is committed");
  for (const auto& [step, stored] : facts.disk) {
    const bool one_line = step <= action.step ? IsOnPath(stored.content, content)
                                              : IsOnPath(content, stored.content);
    if (!one_line) {
      Fail("C7: step " + std::to_string(action.step) + " of generation " +
           std::to_string(action.generation) + " is committed beside step " +
           std::to_string(step));
    }
  }
  const GenerationPtr current = Find(action.job, facts.newest_generation);
  if (current != nullptr && !current->over && current->trains && action.generation != 0 &&
      !IsOnPath(content, current->content)) {
    Fail("C7: step " + std::to_string(action.step) + " of generation " +
         std::to_string(action.generation) + " is committed, which generation " +
         std::to_string(current->number) + " does not go on from");
  }
}

void ClusterModel::CheckStates() {
  if (state_ == nullptr) return;
  for (auto& [name, facts] : jobs_) {
    const JobStatus* status = state_->status(name);
    if (status == nullptr) continue;
    if (status->generation() < facts.newest_generation) Fail("M1: a number was forgotten");
    if (status->committed_step() < facts.acknowledged && !facts.damaged) {
      Fail("C7: the commit of step " + std::to_string(facts.acknowledged) + " is lost");
    }
    if (status->state() == WAITING && status->reason().rfind("waiting for nodes", 0) == 0 &&
        !HasDigit(status->reason())) {
      Fail("M5: waits, and does not say for how many: " + status->reason());
    }
    facts.min_nodes = status->min_nodes();
    if (registered_.size() >= facts.min_nodes) {
      facts.too_few_since = absl::InfiniteFuture();
    } else {
      facts.too_few_since = std::min(facts.too_few_since, timeline_.now());
      const bool active = status->state() == RUNNING || status->state() == STARTING;
      if (active && timeline_.now() > facts.too_few_since + kNotices) {
        Fail("M5: below the minimum, and " + JobState_Name(status->state()));
      }
    }
  }
}

void ClusterModel::CheckEnd() {
  for (const auto& [name, facts] : jobs_) {
    const JobStatus& status = *state_->status(name);
    const int code = status.exit_code();
    bool legal = false;
    switch (status.state()) {
      case SUCCEEDED: {
        const auto last = facts.disk.find(facts.spec.train().steps());
        legal = code == 0 && (last != facts.disk.end() || facts.damaged);
        break;
      }
      case CANCELLED:
        legal = code == kExitCancelled && facts.stopped;
        break;
      case FAILED:
        legal = (code == kExitGaveUp && facts.budget) ||
                (code == kExitCheckpointInvalid && facts.damaged) ||
                (code == kExitJobFailed && facts.fatal);
        break;
      default:
        break;
    }
    if (!legal) Fail("an end that nothing explains: " + status.DebugString());
  }
}

}  // namespace moesaic
