#include "scheduler/state/cluster_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace moesaic {
namespace {

bool HasLiveGeneration(JobState state) {
  return state == STARTING || state == RUNNING || state == DRAINING || state == ABORTING;
}

}  // namespace

ClusterState::ClusterState(ClusterOptions options, const std::vector<JobRecord>& records,
                           absl::Time now, const std::vector<NodeRecord>&)
    : options_(options), now_(now) {
  for (const JobRecord& record : records) {
    auto job = std::make_unique<Job>();
    job->record = record;
    next_order_ = std::max(next_order_, record.order() + 1);
    JobStatus* status = job->record.mutable_status();
    if (!job->ended()) {
      // Agents that outlived the coordinator have this long to come back and be told to clean up.
      if (HasLiveGeneration(job->state())) job->not_before = now + options_.lease_ttl;
      status->set_state(WAITING);
      status->set_reason("the coordinator was restarted");
    }
    jobs_[record.status().job()] = std::move(job);
  }
}

Outcome ClusterState::Handle(const Event& event, absl::Time now) {
  now_ = std::max(now_, now);
  out_ = Outcome();
  out_.status = std::visit([this](const auto& e) { return On(e); }, event);
  if (out_.status.ok() && !std::holds_alternative<AgentRenewed>(event)) {
    std::vector<Job*> jobs;
    for (const auto& [name, job] : jobs_) jobs.push_back(job.get());
    std::sort(jobs.begin(), jobs.end(),
              [](const Job* a, const Job* b) { return a->record.order() < b->record.order(); });
    for (Job* job : jobs) TryPlan(job);
  }
  return std::move(out_);
}

const JobStatus* ClusterState::status(absl::string_view job) const {
  const Job* found = FindJob(job);
  return found == nullptr ? nullptr : &found->record.status();
}

const JobSpec* ClusterState::spec(absl::string_view job) const {
  const Job* found = FindJob(job);
  return found == nullptr ? nullptr : &found->spec();
}

const RankTable* ClusterState::rank_table(absl::string_view job) const {
  const Job* found = FindJob(job);
  return found == nullptr || found->live == nullptr ? nullptr : &found->live->table;
}

const Control* ClusterState::control(absl::string_view job) const {
  const Job* found = FindJob(job);
  return found == nullptr || found->live == nullptr ? nullptr : &found->live->control;
}

std::vector<std::string> ClusterState::jobs() const {
  std::vector<std::string> names;
  for (const auto& [name, job] : jobs_) names.push_back(name);
  return names;
}

// ---- Jobs.
// ---------------------------------------------------------------------------------------

absl::Status ClusterState::On(const JobSubmitted& event) {
  const std::string& name = event.spec.name();
  if (name.empty()) return absl::InvalidArgumentError("the job has no name");
  const Job* old = FindJob(name);
  if (old != nullptr && !old->ended()) {
    return absl::AlreadyExistsError(fmt::format("job {} is {}; stop it first, or give another name",
                                                name, JobState_Name(old->state())));
  }
  auto job = std::make_unique<Job>();
  // Numbers of generations go on where an earlier job of this name left them.
  const uint64_t generation = old == nullptr ? 0 : old->record.status().generation();
  job->sequence = old == nullptr ? 0 : old->sequence;
  job->record.set_order(next_order_++);
  *job->record.mutable_spec() = event.spec;
  job->record.set_resume(event.resume.empty() ? "auto" : event.resume);
  JobStatus* status = job->record.mutable_status();
  status->set_job(name);
  status->set_generation(generation);
  status->set_total_steps(event.spec.train().steps());
  job->not_before = now_;
  Job* added = (jobs_[name] = std::move(job)).get();
  Transition(added, QUEUED, "submitted");
  return absl::OkStatus();
}

absl::Status ClusterState::On(const StopRequested& event) {
  Job* job = FindJob(event.job);
  if (job == nullptr) return absl::NotFoundError(fmt::format("there is no job {}", event.job));
  if (job->ended()) return absl::OkStatus();
  if (event.now || job->record.stop() == STOP_NONE) {
    job->record.set_stop(event.now ? STOP_NOW : STOP_GRACEFUL);
  }
  if (job->live == nullptr) {
    EndJob(job, CANCELLED, kJobCancelled, "stopped before it ran");
    return absl::OkStatus();
  }
  // A generation that has not started yet has nothing to save.
  if (event.now || !job->live->was_ready) {
    EndLive(job, Cause{"stopped on request"}, event.now);
  } else if (job->state() == RUNNING || job->state() == DRAINING) {
    job->live->control.set_stop(true);
    PushControlOf(job);
    Transition(job, DRAINING, "stopping on request: saving first");
  } else {
    Save(*job);
  }
  return absl::OkStatus();
}

// ---- Agents.
// -------------------------------------------------------------------------------------

absl::StatusOr<ClusterState::Node*> ClusterState::FindNode(const std::string& agent,
                                                           const std::string& incarnation) {
  const auto found = nodes_.find(agent);
  if (found == nodes_.end() || found->second.incarnation != incarnation) {
    return absl::FailedPreconditionError(
        fmt::format("stale agent {}: it has to register again", agent));
  }
  return &found->second;
}

absl::Status ClusterState::On(const AgentJoined& event) {
  const auto old = nodes_.find(event.agent);
  if (old != nodes_.end() && old->second.incarnation != event.incarnation) {
    return absl::AlreadyExistsError(
        fmt::format("another agent is node {}; give this one another name", event.agent));
  }
  if (old != nodes_.end()) DropNode(event.agent, "its agent registered again");
  Node& node = nodes_[event.agent];
  node.incarnation = event.incarnation;
  node.registration = event.registration;
  node.lease_until = now_ + options_.lease_ttl;
  node.joined = now_;
  AgentCommand command;
  command.mutable_welcome()->set_lease_ttl_seconds(absl::ToDoubleSeconds(options_.lease_ttl));
  Send(event.agent, std::move(command));
  if (event.registration.running_generation() != 0) {
    // Of a generation that ended when its stream broke, or that a former coordinator started.
    node.busy_job = event.registration.running_job();
    node.busy_generation = event.registration.running_generation();
    AgentCommand kill;
    kill.mutable_kill()->set_job(node.busy_job);
    kill.mutable_kill()->set_generation(node.busy_generation);
    kill.mutable_kill()->set_now(true);
    Send(event.agent, std::move(kill));
  }
  for (const auto& [name, job] : jobs_) {
    if (!job->ended()) {
      Note(job.get(),
           fmt::format("node {} joined with {} slots", event.agent, event.registration.slots()));
    }
  }
  return absl::OkStatus();
}

absl::Status ClusterState::On(const AgentRenewed& event) {
  const absl::StatusOr<Node*> node = FindNode(event.agent, event.incarnation);
  if (!node.ok()) return node.status();
  (*node)->lease_until = now_ + options_.lease_ttl;
  return absl::OkStatus();
}

absl::Status ClusterState::On(const AgentLost& event) {
  const absl::StatusOr<Node*> node = FindNode(event.agent, event.incarnation);
  if (!node.ok()) return node.status();
  DropNode(event.agent, event.reason);
  return absl::OkStatus();
}

void ClusterState::DropNode(const std::string& agent, const std::string& reason) {
  nodes_.erase(agent);
  for (const auto& [name, owned] : jobs_) {
    Job* job = owned.get();
    if (job->ended()) continue;
    Note(job, fmt::format("node {} was lost: {}", agent, reason));
    if (job->live == nullptr) continue;
    const auto& members = job->live->nodes;
    if (std::find(members.begin(), members.end(), agent) == members.end()) continue;
    job->live->lost_node = true;
    GiveUpSnapshotsOf(job, agent, fmt::format("node {} was lost", agent));
    if (job->live->unclean.erase(agent) > 0) {
      EndLive(job, Cause{fmt::format("node {} was lost: {}", agent, reason)}, true);
    } else {
      FinishIfClean(job);
    }
  }
}

// ---- Planning.
// -----------------------------------------------------------------------------------

std::vector<PlanNode> ClusterState::UsableNodes(const Job* job, bool only_free) const {
  std::vector<PlanNode> usable;
  for (const auto& [name, node] : nodes_) {
    const bool own = job->live != nullptr && node.busy_job == job->name() &&
                     node.busy_generation == job->live->number;
    if (only_free && node.busy_generation != 0 && !own) continue;
    usable.push_back({name, node.registration.slots(), node.registration.cores()});
  }
  return usable;
}

bool ClusterState::MoreMayJoin(const Job& job, size_t nodes) const {
  if (nodes >= job.spec().elastic().nodes().max()) return false;
  // Neither the first start nor a restart waits for longer than this after the latest change.
  absl::Time latest = job.not_before;
  for (const auto& [name, node] : nodes_) latest = std::max(latest, node.joined);
  return now_ < latest + options_.join_wait && job.failures.empty();
}

void ClusterState::TryPlan(Job* job) {
  if (job->state() != QUEUED && job->state() != WAITING) return;
  if (job->record.stop() != STOP_NONE) {
    EndJob(job, CANCELLED, kJobCancelled, "stopped on request");
    return;
  }
  if (now_ < job->not_before) return;
  if (WaitForOldGeneration(job)) return;
  const absl::StatusOr<GenerationPlan> plan =
      PlanGeneration({.spec = &job->spec(),
                      .nodes = UsableNodes(job, true),
                      .placement_epoch = job->record.status().generation() + 1});
  if (absl::IsInvalidArgument(plan.status())) {
    EndJob(job, FAILED, kJobBadConfig, std::string(plan.status().message()));
  } else if (!plan.ok()) {
    WaitForNodes(job, plan.status());
  } else if (!MoreMayJoin(*job, plan->nodes.size())) {
    out_.actions.push_back(
        ChooseRestore{job->name(), ++job->attempt, job->spec(), job->record.resume()});
    Transition(job, PLANNING, "looking for the newest checkpoint");
  }
}

void ClusterState::WaitForNodes(Job* job, const absl::Status& refusal) {
  const bool exist = PlanGeneration({.spec = &job->spec(), .nodes = UsableNodes(job, false)}).ok();
  const JobState state = exist ? QUEUED : WAITING;
  std::string reason = exist ? "its nodes are busy; " : "waiting for nodes: ";
  reason += std::string(refusal.message());
  Wait(job, state, reason);
}

bool ClusterState::WaitForOldGeneration(Job* job) {
  for (const auto& [name, node] : nodes_) {
    if (node.busy_job != job->name()) continue;
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
  status->set_tokens(event.state.tokens());
  if (event.state.has_validation_loss()) {
    status->set_validation_loss(event.state.validation_loss());
  }
  if (event.state.step() > 0 && status->last_step().step() == 0) {
    status->mutable_last_step()->set_step(event.state.step());
    status->mutable_last_step()->set_loss(event.state.loss());
  }
  if (event.state.step() >= job->spec().train().steps()) {
    EndJob(job, SUCCEEDED, 0,
           fmt::format("step {} of {} was done before; to train anew, use --resume never",
                       event.state.step(), job->spec().train().steps()));
    return absl::OkStatus();
  }
  // Nodes may have come and gone since. One that came back still running an older generation is
  // not free, and WAITING looks after it.
  if (WaitForOldGeneration(job)) return absl::OkStatus();
  const absl::StatusOr<GenerationPlan> plan =
      PlanGeneration({.spec = &job->spec(),
                      .nodes = UsableNodes(job, true),
                      .placement_epoch = status->generation() + 1});
  if (!plan.ok()) {
    WaitForNodes(job, plan.status());
    return absl::OkStatus();
  }
  StartGeneration(job, *plan, event);
  return absl::OkStatus();
}

void ClusterState::StartGeneration(Job* job, const GenerationPlan& plan,
                                   const RestoreChosen& restore) {
  JobStatus* status = job->record.mutable_status();
  auto live = std::make_unique<Generation>();
  live->number = status->generation() + 1;
  live->token = restore.token;
  live->layout = plan.layout;
  live->head = plan.nodes.front().id;
  live->table = MakeRankTable(job->spec(), plan);
  live->table.set_job(job->name());
  live->table.set_generation(live->number);
  live->table.set_restore_path(restore.path);
  live->ranks.resize(plan.mesh.size());
  live->trajectory_changes = restore.trajectory_changes;
  live->control.set_generation(live->number);
  live->control.set_committed_step(status->committed_step());
  live->committed_at_start = status->committed_step();
  live->started = now_;

  AgentCommand command;
  class StartGeneration* start = command.mutable_start();
  start->set_job(job->name());
  start->set_generation(live->number);
  start->set_ranks(plan.mesh.size());
  start->set_threads(plan.threads);
  start->set_oversubscribe(job->spec().launch().oversubscribe());
  start->set_run_dir(job->spec().run().dir());
  start->set_token(live->token);
  const uint32_t slots = job->spec().elastic().slots_per_node();
  std::set<std::string> hosts;
  for (const PlanNode& node : plan.nodes) {
    const std::string& host = nodes_[node.id].registration.host();
    hosts.insert(host);
    HostSlots* entry = start->add_hosts();
    entry->set_host(host);
    entry->set_slots(slots);
  }
  start->set_allow_root(job->spec().launch().has_allow_root() ? job->spec().launch().allow_root()
                                                              : hosts.size() == 1);
  for (RankEntry& entry : *live->table.mutable_ranks()) {
    entry.set_arena_path(fmt::format("{}/{}/r{}", nodes_[entry.node()].registration.arena_dir(),
                                     job->name(), entry.rank()));
  }

  status->set_generation(live->number);
  status->set_ranks(plan.mesh.size());
  status->set_layout(plan.layout);
  job->record.set_resume("auto");
  for (const PlanNode& node : plan.nodes) {
    live->nodes.push_back(node.id);
    live->unclean.insert(node.id);
    nodes_[node.id].busy_job = job->name();
    nodes_[node.id].busy_generation = live->number;
    start->set_head(node.id == live->head);
    start->clear_arenas();
    for (const RankEntry& entry : live->table.ranks()) {
      if (entry.node() != node.id) continue;
      RankArena* arena = start->add_arenas();
      arena->set_rank(entry.rank());
      arena->set_path(entry.arena_path());
    }
    Send(node.id, command);
  }
  const uint64_t number = live->number;
  job->live = std::move(live);
  for (const SpareNode& spare : plan.spares) {
    Note(job, fmt::format("node {} stays spare: {}", spare.id, spare.reason));
  }
  Transition(job, STARTING,
             fmt::format("generation {}: {}; {}", number, plan.layout,
                         restore.path.empty() ? std::string("a new start")
                                              : fmt::format("from step {} in {}",
                                                            restore.state.step(), restore.path)));
}

void ClusterState::DrainForMoreNodes(Job* job) {
  if (job->state() != RUNNING || job->record.stop() != STOP_NONE) return;
  Generation* live = job->live.get();
  for (const auto& [name, node] : nodes_) {
    if (now_ < node.joined + options_.join_wait) return;
  }
  const absl::StatusOr<GenerationPlan> plan =
      PlanGeneration({.spec = &job->spec(),
                      .nodes = UsableNodes(job, true),
                      .placement_epoch = live->number + 1});
  if (!plan.ok() || plan->nodes.size() <= live->nodes.size()) return;
  live->draining_for_nodes = true;
  live->control.set_stop(true);
  PushControlOf(job);
  Transition(job, DRAINING, fmt::format("saving, to go on as: {}", plan->layout));
}

absl::Status ClusterState::On(const ResizeRequested&) { return absl::UnimplementedError("resize"); }
absl::Status ClusterState::On(const NodeChangeRequested&) {
  return absl::UnimplementedError("node");
}
absl::Status ClusterState::On(const AgentPreempted&) { return absl::UnimplementedError("preempt"); }
absl::Status ClusterState::On(const CopiesReported&) { return absl::UnimplementedError("copies"); }
absl::Status ClusterState::On(const SnapshotRequested&) {
  return absl::UnimplementedError("snapshot");
}

std::vector<NodeStatus> ClusterState::nodes(absl::Time now) const {
  std::vector<NodeStatus> all;
  for (const auto& [name, node] : nodes_) {
    NodeStatus& status = all.emplace_back();
    status.set_node(name);
    status.set_state(node.busy_generation == 0 ? NodeStatus::FREE : NodeStatus::BUSY);
    status.set_slots(node.registration.slots());
    status.set_cores(node.registration.cores());
    status.set_host(node.registration.host());
    status.set_job(node.busy_job);
    status.set_generation(node.busy_generation);
    status.set_lease_age_seconds(
        absl::ToDoubleSeconds(now - (node.lease_until - options_.lease_ttl)));
  }
  return all;
}

absl::Status ClusterState::On(const Tick&) {
  std::vector<std::string> silent;
  for (const auto& [name, node] : nodes_) {
    if (now_ >= node.lease_until) silent.push_back(name);
  }
  for (const std::string& name : silent) {
    DropNode(name, fmt::format("silent for {}", absl::FormatDuration(options_.lease_ttl)));
  }
  for (const auto& [name, job] : jobs_) {
    if (job->live == nullptr) continue;
    DrainForMoreNodes(job.get());
    CheckHealth(job.get());
  }
  return absl::OkStatus();
}

// ---- What leaves the state.
// ----------------------------------------------------------------------

void ClusterState::Transition(Job* job, JobState state, const std::string& reason) {
  job->record.mutable_status()->set_state(state);
  job->record.mutable_status()->set_reason(reason);
  Save(*job);
  JobEvent event;
  *event.mutable_status() = job->record.status();
  Publish(job, std::move(event));
}

void ClusterState::EndJob(Job* job, JobState state, int exit_code, const std::string& reason) {
  job->record.mutable_status()->set_exit_code(exit_code);
  Transition(job, state, reason);
  for (const auto& [name, node] : nodes_) {
    AgentCommand command;
    command.mutable_forget()->set_job(job->name());
    Send(name, std::move(command));
  }
}

void ClusterState::Note(Job* job, const std::string& text) {
  JobEvent event;
  event.set_note(text);
  Publish(job, std::move(event));
}

void ClusterState::Publish(Job* job, JobEvent event) {
  event.set_sequence(++job->sequence);
  event.set_unix_ns(absl::ToUnixNanos(now_));
  out_.actions.push_back(PublishEvent{job->name(), std::move(event)});
}

void ClusterState::Save(const Job& job) {
  std::erase_if(out_.records,
                [&](const JobRecord& record) { return record.status().job() == job.name(); });
  out_.records.push_back(job.record);
}

void ClusterState::Send(const std::string& agent, AgentCommand command) {
  out_.actions.push_back(SendToAgent{agent, std::move(command)});
}

void ClusterState::PushControlOf(Job* job) {
  out_.actions.push_back(PushControl{job->name(), job->live->control});
}

ClusterState::Job* ClusterState::FindJob(absl::string_view name) {
  const auto found = jobs_.find(std::string(name));
  return found == jobs_.end() ? nullptr : found->second.get();
}

const ClusterState::Job* ClusterState::FindJob(absl::string_view name) const {
  const auto found = jobs_.find(std::string(name));
  return found == jobs_.end() ? nullptr : found->second.get();
}

bool EqualInConstantTime(absl::string_view a, absl::string_view b) {
  unsigned char difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i] ^ (b.empty() ? 0 : b[i % b.size()]));
  }
  return difference == 0;
}

}  // namespace moesaic
