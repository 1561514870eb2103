// ClusterState: when and with which nodes the next generation starts, and from where; and when a
// generation that runs is to make way for one with other nodes.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "scheduler/state/cluster_state.h"

namespace moesaic {

std::vector<PlanNode> ClusterState::UsableNodes(const Job* job, bool only_free) const {
  std::vector<PlanNode> usable;
  for (const auto& [name, node] : nodes_) {
    if (!node.leaving.empty() || book_.WhyNot(name, now_)) continue;
    if (only_free && (node.busy_generation != 0 || Silent(node))) continue;
    usable.push_back({name, node.registration.slots(), node.registration.cores(),
                      node.registration.memory_bytes()});
  }
  // What runs on a cordoned node stays there.
  if (job->live == nullptr) return usable;
  for (const std::string& name : job->live->record.nodes()) {
    const auto node = nodes_.find(name);
    const bool there = std::any_of(usable.begin(), usable.end(),
                                   [&, &name = name](const PlanNode& n) { return n.id == name; });
    if (there || node == nodes_.end()) continue;
    const AgentRegistration& registration = node->second.registration;
    usable.push_back(
        {name, registration.slots(), registration.cores(), registration.memory_bytes()});
  }
  return usable;
}

absl::StatusOr<GenerationPlan> ClusterState::Plan(const Job& job, std::vector<PlanNode> nodes,
                                                  const TrainingState* restored,
                                                  bool move_experts) const {
  return PlanGeneration({.spec = &job.spec(),
                         .nodes = std::move(nodes),
                         .placement_epoch = job.record.status().generation() + 1,
                         .restored = restored,
                         .previous_nodes = job.last_nodes,
                         .move_experts = move_experts,
                         .min_nodes = job.record.min_nodes(),
                         .max_nodes = job.record.max_nodes()});
}

bool ClusterState::MoreMayJoin(const Job& job, size_t nodes) const {
  if (nodes >= job.record.status().max_nodes()) return false;
  absl::Time latest = job.settle_from;
  if (job.settle == options_.join_wait) {
    for (const auto& [name, node] : nodes_) latest = std::max(latest, node.joined);
  }
  return now_ < latest + job.settle;
}

std::optional<JobSnapshots::Restorable> ClusterState::FromMemory(const Job& job) const {
  if (job.record.resume() != "auto" || job.verify_content) return std::nullopt;
  auto newest = job.snapshots.Newest(*this);
  // The last step counts only once it is on disk.
  if (!newest || newest->step < job.record.status().committed_step() ||
      newest->step >= job.spec().train().steps()) {
    return std::nullopt;
  }
  return newest;
}

void ClusterState::TryPlan(Job* job) {
  if (job->state() != QUEUED && job->state() != WAITING) return;
  if (job->record.stop() != STOP_NOW && WaitForMemory(job)) return;
  const auto memory = FromMemory(*job);
  if (job->record.stop() != STOP_NONE) {
    if (job->record.stop() == STOP_GRACEFUL) job->snapshots.WantNewest(this);
    if (job->record.stop() == STOP_GRACEFUL && job->snapshots.Pending()) {
      Wait(job, WAITING, fmt::format("stopping on request: {} is still being saved",
                                     job->snapshots.DescribePending()));
    } else if (!job->snapshots.Committing(0)) {
      const uint64_t saved = job->record.status().committed_step();
      EndJob(job, CANCELLED, kExitCancelled,
             saved == 0
                 ? std::string("stopped before it ran")
                 : fmt::format("stopped on request; the newest checkpoint is step {}", saved));
    }
    return;
  }
  if (WaitForOldGeneration(job)) return;
  const absl::StatusOr<GenerationPlan> plan =
      Plan(*job, UsableNodes(job, true), memory ? &memory->record.state() : nullptr,
           job->move_experts);
  if (absl::IsInvalidArgument(plan.status())) {
    EndJob(job, FAILED, kExitUsage, std::string(plan.status().message()));
  } else if (!plan.ok()) {
    WaitForNodes(job, plan.status());
  } else if (MoreMayJoin(*job, plan->nodes.size())) {
    return;
  } else if (job->snapshots.Committing(memory ? memory->step : 0) ||
             (!memory && job->snapshots.Pending())) {
    Wait(job, WAITING, fmt::format("{} is still being saved", job->snapshots.DescribePending()));
  } else if (memory) {
    const JobStatus& status = job->record.status();
    Start(job, *plan,
          {memory->record.state(),
           memory->step == status.committed_step() ? status.committed_path() : "",
           memory->sources});
  } else {
    out_.actions.push_back(ChooseRestore{job->name(), ++job->attempt, job->spec(),
                                         job->record.resume(), job->verify_content});
    Transition(job, PLANNING, "looking for the newest checkpoint");
  }
}

// After a restart of the coordinator between two generations: the newest steps may be in the memory
// of nodes that are on their way back.
bool ClusterState::WaitForMemory(Job* job) {
  const uint64_t step = job->snapshots.newest_whole();
  if (now_ >= job->recall_until || step <= job->record.status().committed_step()) return false;
  if (const auto found = job->snapshots.Newest(*this); found && found->step == step) return false;
  Wait(job, WAITING, fmt::format("the coordinator was restarted: waiting for the nodes that hold "
                                 "step {} in memory", step));
  return true;
}

void ClusterState::WaitForNodes(Job* job, const absl::Status& refusal) {
  const bool exist = Plan(*job, UsableNodes(job, false), nullptr, false).ok();
  const JobState state = exist ? QUEUED : WAITING;
  std::string reason = exist ? "its nodes are busy; " : "waiting for nodes: ";
  reason += std::string(refusal.message());
  job->settle_from = now_;
  job->settle = options_.join_wait;
  Wait(job, state, reason);
}

bool ClusterState::WaitForOldGeneration(Job* job) {
  for (const auto& [name, node] : nodes_) {
    if (node.busy_job != job->name() || Silent(node)) continue;
    Wait(job, WAITING,
         fmt::format("generation {} is still ending on node {}", node.busy_generation, name));
    return true;
  }
  return false;
}

void ClusterState::Wait(Job* job, JobState state, const std::string& reason) {
  if (job->state() == state && job->record.status().reason() == reason) return;
  Transition(job, state, reason);
}

absl::Status ClusterState::On(const RestoreChosen& event) {
  Job* job = FindJob(event.job);
  if (job == nullptr || job->state() != PLANNING || job->attempt != event.attempt) {
    return absl::FailedPreconditionError("stale plan");
  }
  for (const std::string& note : event.notes) Note(job, note);
  if (!event.status.ok()) {
    EndJob(job, FAILED, event.exit_code, std::string(event.status.message()));
    return absl::OkStatus();
  }
  JobStatus* status = job->record.mutable_status();
  status->set_committed_step(event.state.step());
  status->set_committed_path(event.path);
  job->record.clear_trajectory_changes();
  for (const std::string& change : event.trajectory_changes) {
    job->record.add_trajectory_changes(change);
  }
  if (event.state.step() >= job->spec().train().steps()) {
    TakeRestored(job, event.state);
    EndJob(job, SUCCEEDED, 0,
           fmt::format("step {} of {} was done before; to train anew, use --resume never",
                       event.state.step(), job->spec().train().steps()));
    return absl::OkStatus();
  }
  // Nodes may have come and gone since. One that came back still running an older generation is
  // not free, and WAITING looks after it.
  if (WaitForOldGeneration(job)) return absl::OkStatus();
  const absl::StatusOr<GenerationPlan> plan =
      Plan(*job, UsableNodes(job, true), event.state.step() > 0 ? &event.state : nullptr,
           job->move_experts);
  if (!plan.ok()) {
    WaitForNodes(job, plan.status());
    return absl::OkStatus();
  }
  Start(job, *plan, {event.state, event.path, {}});
  return absl::OkStatus();
}

void ClusterState::TakeRestored(Job* job, const TrainingState& state) {
  JobStatus* status = job->record.mutable_status();
  status->set_tokens(state.tokens());
  if (state.has_validation_loss()) status->set_validation_loss(state.validation_loss());
  if (state.step() > 0 && status->last_step().step() == 0) {
    status->mutable_last_step()->set_step(state.step());
    status->mutable_last_step()->set_loss(state.loss());
  }
}

void ClusterState::Start(Job* job, const GenerationPlan& plan, const RestorePoint& restore) {
  JobStatus* status = job->record.mutable_status();
  TakeRestored(job, restore.state);
  job->live = std::make_unique<Generation>();
  Generation* live = job->live.get();
  GenerationRecord* record = &live->record;
  record->set_number(status->generation() + 1);
  record->set_token(options_.draw_token ? options_.draw_token()
                                        : fmt::format("token-{}", ++drawn_tokens_));
  record->set_head(plan.nodes.front().id);
  record->set_layout(plan.layout);
  *record->mutable_trajectory_changes() = job->record.trajectory_changes();
  RankTable* table = record->mutable_table();
  *table = MakeRankTable(job->spec(), plan);
  table->set_job(job->name());
  table->set_generation(record->number());
  table->set_restore_path(restore.path);
  RestoreSources* sources = table->mutable_restore();
  sources->set_step(restore.state.step());
  sources->set_path(restore.path);
  *sources->mutable_snapshots() = {restore.sources.begin(), restore.sources.end()};
  for (RankEntry& entry : *table->mutable_ranks()) {
    entry.set_arena_path(fmt::format("{}/{}/g{}-r{}",
                                     nodes_[entry.node()].registration.arena_dir(), job->name(),
                                     record->number(), entry.rank()));
  }
  live->ranks.resize(plan.mesh.size());
  live->stragglers.emplace(live->ranks.size(), job->spec().health().straggler_ratio());
  live->control.set_generation(record->number());
  live->started_at_step = restore.state.step();
  live->started = now_;
  job->last_nodes.clear();
  for (const PlanNode& node : plan.nodes) {
    record->add_nodes(node.id);
    job->last_nodes.push_back(node.id);
    live->unclean.insert(node.id);
    nodes_[node.id].busy_job = job->name();
    nodes_[node.id].busy_generation = record->number();
  }
  status->set_generation(record->number());
  status->set_ranks(static_cast<uint32_t>(plan.mesh.size()));
  status->set_layout(plan.layout);
  status->clear_stragglers();
  job->record.set_resume("auto");
  job->verified = job->verify_content;
  job->verify_content = false;
  if (job->move_experts) Note(job, fmt::format("experts moved: {}", plan.reason));
  job->move_experts = false;
  job->rebalance.Forget();
  job->spares = plan.spares;
  job->snapshots.Begin(OriginOf(*job), restore.state.step(), status->committed_step(), this);
  job->snapshots.FillControl(&live->control);
  for (const SpareNode& spare : plan.spares) {
    Note(job, fmt::format("node {} stays spare: {}", spare.id, spare.reason));
  }
  std::string from = "a new start";
  if (!restore.sources.empty()) {
    from = fmt::format("from step {} in memory", restore.state.step());
  } else if (!restore.path.empty()) {
    from = fmt::format("from step {} in {}", restore.state.step(), restore.path);
  }
  SendStart(job, plan);
  AdmitReaders(*job);
  Transition(job, STARTING,
             fmt::format("generation {}: {}; {}", record->number(), plan.layout, from));
}

// Nodes outside of the generation that hold what it starts from.
void ClusterState::AdmitReaders(const Job& job) {
  const GenerationRecord& record = job.live->record;
  std::set<std::string> holders;
  for (const SnapshotSource& source : record.table().restore().snapshots()) {
    if (!job.live->has(source.node())) holders.insert(source.node());
  }
  for (const std::string& node : holders) {
    AgentCommand command;
    command.mutable_admit()->set_job(job.name());
    command.mutable_admit()->set_generation(record.number());
    command.mutable_admit()->set_token(record.token());
    Send(node, std::move(command));
  }
}

void ClusterState::SendStart(Job* job, const GenerationPlan& plan) {
  const Generation& live = *job->live;
  AgentCommand command;
  class StartGeneration* start = command.mutable_start();
  start->set_job(job->name());
  start->set_generation(live.number());
  start->set_ranks(static_cast<uint32_t>(live.ranks.size()));
  start->set_threads(plan.threads);
  start->set_oversubscribe(job->spec().launch().oversubscribe());
  start->set_run_dir(job->spec().run().dir());
  start->set_interface(job->spec().launch().interface());
  start->set_token(live.record.token());
  start->set_orphan_grace_seconds(job->spec().health().orphan_grace());
  std::set<std::string> hosts;
  for (const PlanNode& node : plan.nodes) {
    const AgentRegistration& registration = nodes_[node.id].registration;
    hosts.insert(registration.host());
    HostSlots* entry = start->add_hosts();
    entry->set_host(registration.host());
    entry->set_slots(job->spec().elastic().slots_per_node());
    entry->set_node(node.id);
    entry->set_address(registration.address());
  }
  start->set_allow_root(job->spec().launch().has_allow_root() ? job->spec().launch().allow_root()
                                                              : hosts.size() == 1);
  for (const PlanNode& node : plan.nodes) {
    start->set_head(node.id == live.record.head());
    start->clear_arenas();
    for (const RankEntry& entry : live.table().ranks()) {
      if (entry.node() != node.id) continue;
      RankArena* arena = start->add_arenas();
      arena->set_rank(entry.rank());
      arena->set_path(entry.arena_path());
    }
    Send(node.id, command);
  }
}

SnapshotOrigin ClusterState::OriginOf(const Job& job) {
  SnapshotOrigin origin;
  origin.trajectory_changes = {job.record.trajectory_changes().begin(),
                               job.record.trajectory_changes().end()};
  if (job.live == nullptr) return origin;
  const GenerationRecord& record = job.live->record;
  origin.generation = record.number();
  origin.token = record.token();
  origin.layout = record.layout();
  origin.nodes = {record.nodes().begin(), record.nodes().end()};
  for (const RankEntry& entry : record.table().ranks()) {
    origin.rank_nodes.push_back(entry.node());
    origin.arenas.push_back(entry.arena_path());
  }
  return origin;
}

// ---- Changes of nodes while a generation runs.
// ---------------------------------------------------

void ClusterState::ReconsiderAll(absl::Time when) {
  for (const auto& [name, job] : jobs_) job->reconsider = when;
}

void ClusterState::ConsiderChange(Job* job) {
  if (job->state() != RUNNING || job->record.stop() != STOP_NONE) return;
  const Generation& live = *job->live;
  if (live.killing || live.exit_code || !live.awaited.empty()) return;
  for (const std::string& name : live.record.nodes()) {
    const auto node = nodes_.find(name);
    if (node == nodes_.end() || Stays(name)) continue;
    StopAtStep(job, fmt::format("saving in memory, to go on without node {}: {}", name,
                                node->second.leaving.empty() ? "it is being drained"
                                                             : node->second.leaving));
    return;
  }
  if (now_ < job->reconsider) return;
  job->reconsider = absl::InfiniteFuture();
  const absl::StatusOr<GenerationPlan> plan =
      Plan(*job, UsableNodes(job, true), nullptr, false);
  if (!plan.ok()) {
    Note(job, fmt::format("goes on with {} nodes: {}", live.record.nodes_size(),
                          std::string(plan.status().message())));
    return;
  }
  job->spares = plan->spares;
  const size_t now_used = static_cast<size_t>(live.record.nodes_size());
  if (plan->nodes.size() == now_used) {
    DescribeJob(job);
    return;
  }
  StopAtStep(job, fmt::format("saving in memory, to go on as: {}", plan->layout));
}

}  // namespace moesaic
