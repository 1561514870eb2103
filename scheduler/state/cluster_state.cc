#include "scheduler/state/cluster_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace moesaic {
namespace {

// Lease renewals and reports of steps come in by the thousand a second; neither plans nor snapshots
// depend on them, save where a report ends its generation.
bool IsHeartbeat(const Event& event, const Outcome& outcome) {
  if (std::holds_alternative<AgentRenewed>(event)) return true;
  return std::holds_alternative<StepReported>(event) && outcome.records.empty() &&
         std::all_of(outcome.actions.begin(), outcome.actions.end(), [](const Action& action) {
           return std::holds_alternative<PublishEvent>(action);
         });
}

}  // namespace

bool ClusterState::Generation::has(const std::string& node) const {
  return std::find(record.nodes().begin(), record.nodes().end(), node) != record.nodes().end();
}

ClusterState::ClusterState(ClusterOptions options, const std::vector<JobRecord>& records,
                           absl::Time now, const std::vector<NodeRecord>& node_records)
    : options_(std::move(options)), book_(options_.blame, node_records), now_(now) {
  for (const JobRecord& record : records) {
    auto owned = std::make_unique<Job>(record.spec(), options_.persist_timeout);
    Job* job = owned.get();
    job->record = record;
    next_order_ = std::max(next_order_, record.order() + 1);
    jobs_[record.status().job()] = std::move(owned);
    if (!job->ended()) Recall(job);
  }
}

Outcome ClusterState::Handle(const Event& event, absl::Time now) {
  now_ = std::max(now_, now);
  out_ = Outcome();
  out_.status = std::visit([this](const auto& e) { return On(e); }, event);
  if (out_.status.ok() && !IsHeartbeat(event, out_)) {
    for (Job* job : JobsInOrder()) {
      FollowSnapshots(job);
      TryPlan(job);
    }
    SettleLeavers();
    out_.node_records = book_.TakeChanged();
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
  return found == nullptr || found->live == nullptr ? nullptr : &found->live->table();
}

const Control* ClusterState::control(absl::string_view job) const {
  const Job* found = FindJob(job);
  return found == nullptr || found->live == nullptr ? nullptr : &found->live->control;
}

std::vector<std::string> ClusterState::jobs() const {
  std::vector<std::string> names;
  for (const Job* job : JobsInOrder()) names.push_back(job->name());
  return names;
}

std::vector<ClusterState::Job*> ClusterState::JobsInOrder() const {
  std::vector<Job*> jobs;
  for (const auto& [name, job] : jobs_) jobs.push_back(job.get());
  std::sort(jobs.begin(), jobs.end(),
            [](const Job* a, const Job* b) { return a->record.order() < b->record.order(); });
  return jobs;
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
  auto job = std::make_unique<Job>(event.spec, options_.persist_timeout);
  // Numbers of generations go on where an earlier job of this name left them.
  const uint64_t generation = old == nullptr ? 0 : old->record.status().generation();
  job->record.set_order(next_order_++);
  *job->record.mutable_spec() = event.spec;
  job->record.set_resume(event.resume.empty() ? "auto" : event.resume);
  JobStatus* status = job->record.mutable_status();
  status->set_job(name);
  status->set_generation(generation);
  status->set_total_steps(event.spec.train().steps());
  status->set_submitted_unix_ns(absl::ToUnixNanos(now_));
  job->settle_from = now_;
  job->settle = options_.join_wait;
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
    // A graceful change may have left steps in memory alone; TryPlan ends it once they are saved.
    if (!event.now) job->snapshots.WantNewest(this);
    Save(job);
    return absl::OkStatus();
  }
  // A generation that has not started yet has nothing to save.
  if (event.now || !job->live->was_ready()) {
    EndLive(job, Cause{.text = "stopped on request", .planned = true}, event.now);
  } else if (job->state() == RUNNING || job->state() == DRAINING) {
    StopAtStep(job, "stopping on request: saving first");
  } else {
    Save(job);
  }
  return absl::OkStatus();
}

// All ranks stop after the same step, as the next control word tells them.
void ClusterState::StopAtStep(Job* job, const std::string& why) {
  Generation* live = job->live.get();
  live->record.set_stopping(why);
  live->stop_asked = std::min(live->stop_asked, now_);
  live->control.set_stop(true);
  PushControlOf(job);
  Transition(job, DRAINING, why);
}

absl::Status ClusterState::On(const ResizeRequested& event) {
  Job* job = FindJob(event.job);
  if (job == nullptr) return absl::NotFoundError(fmt::format("there is no job {}", event.job));
  if (job->ended()) {
    return absl::FailedPreconditionError(fmt::format("job {} has ended", event.job));
  }
  if (event.min_nodes == 0 || event.max_nodes < event.min_nodes) {
    return absl::InvalidArgumentError(
        fmt::format("from {} to {} nodes: the range must begin at 1 or more and not be empty",
                    event.min_nodes, event.max_nodes));
  }
  job->record.set_min_nodes(event.min_nodes);
  job->record.set_max_nodes(event.max_nodes);
  job->reconsider = now_;
  Note(job, fmt::format("resized to between {} and {} nodes", event.min_nodes, event.max_nodes));
  Transition(job, job->state(), std::string(job->record.status().reason()));
  ConsiderChange(job);
  return absl::OkStatus();
}

absl::Status ClusterState::On(const Tick&) {
  std::vector<std::pair<std::string, absl::Duration>> silent;
  for (const auto& [name, node] : nodes_) {
    const absl::Duration lease = LeaseOf(node);
    if (now_ >= node.renewed + lease) silent.emplace_back(name, lease);
  }
  for (const auto& [name, lease] : silent) {
    DropNode(name, fmt::format("silent for {}", absl::FormatDuration(lease)));
  }
  if (book_.CooledDown(now_)) ReconsiderAll(now_);
  CheckDeadlines();
  for (Job* job : JobsInOrder()) {
    if (job->ended()) continue;
    job->snapshots.Tick(this);
    if (job->live == nullptr) continue;
    ConsiderChange(job);
    ConsiderRebalance(job);
    CheckHealth(job);
  }
  return absl::OkStatus();
}

absl::Status ClusterState::On(const Stalled& event) {
  for (auto& [name, node] : nodes_) node.renewed += event.duration;
  for (Job* job : JobsInOrder()) {
    Generation* live = job->live.get();
    if (live == nullptr) continue;
    live->await_until += event.duration;
    for (auto& [node, since] : live->early) since += event.duration;
    for (RankState& rank : live->ranks) rank.progressed += event.duration;
  }
  return absl::OkStatus();
}

// ---- What leaves the state.
// ----------------------------------------------------------------------

void ClusterState::Transition(Job* job, JobState state, const std::string& reason) {
  job->record.mutable_status()->set_state(state);
  job->record.mutable_status()->set_reason(reason);
  DescribeJob(job);
  JobEvent event;
  *event.mutable_status() = job->record.status();
  Publish(job, std::move(event));
  Save(job);
}

void ClusterState::EndJob(Job* job, JobState state, int exit_code, const std::string& reason) {
  job->snapshots.GiveUpUncommitted("the job has ended", this);
  job->record.mutable_status()->set_exit_code(exit_code);
  job->record.mutable_status()->clear_memory_step();
  job->record.mutable_status()->clear_stragglers();
  job->record.clear_memory();
  job->record.clear_live();
  job->live.reset();
  job->spares.clear();
  Transition(job, state, reason);
  job->snapshots = JobSnapshots(job->spec(), options_.persist_timeout);
  for (const auto& [name, node] : nodes_) {
    AgentCommand command;
    command.mutable_forget()->set_job(job->name());
    Send(name, std::move(command));
  }
  ReconsiderAll(now_);  // its nodes are free
}

void ClusterState::Note(Job* job, const std::string& text) {
  JobEvent event;
  event.set_note(text);
  Publish(job, std::move(event));
}

void ClusterState::Publish(Job* job, JobEvent event) {
  event.set_unix_ns(absl::ToUnixNanos(now_));
  out_.actions.push_back(PublishEvent{job->name(), std::move(event)});
}

void ClusterState::Save(Job* job) {
  if (job->live != nullptr) {
    *job->record.mutable_live() = job->live->record;
  } else {
    job->record.clear_live();
  }
  std::erase_if(out_.records,
                [&](const JobRecord& record) { return record.status().job() == job->name(); });
  out_.records.push_back(job->record);
}

void ClusterState::Send(const std::string& agent, AgentCommand command) {
  out_.actions.push_back(SendToAgent{agent, std::move(command)});
}

void ClusterState::PushControlOf(Job* job) {
  out_.actions.push_back(PushControl{job->name(), job->live->control});
}

void ClusterState::Do(Action action) { out_.actions.push_back(std::move(action)); }

void ClusterState::Tell(const std::string& job, const std::string& note) {
  Note(FindJob(job), note);
}

const AgentRegistration* ClusterState::Agent(const std::string& node) const {
  const auto found = nodes_.find(node);
  return found == nodes_.end() ? nullptr : &found->second.registration;
}

bool ClusterState::Answers(const std::string& node) const {
  const auto found = nodes_.find(node);
  return found != nodes_.end() && !Silent(found->second);
}

bool ClusterState::Stays(const std::string& node) const {
  const auto found = nodes_.find(node);
  return found != nodes_.end() && found->second.leaving.empty() && !book_.Draining(node);
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
