// ClusterState: agents that come, go, fall silent and come back; drains, cordons and blame; and how
// a coordinator that was restarted takes back what still runs.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "scheduler/state/cluster_state.h"

namespace moesaic {
namespace {

// Agents renew their lease several times within it. One that has missed a few is not waited for
// where others can go on without it.
constexpr double kSilentShare = 0.4;

AgentCommand Kill(const std::string& job, uint64_t generation, bool now) {
  AgentCommand command;
  command.mutable_kill()->set_job(job);
  command.mutable_kill()->set_generation(generation);
  command.mutable_kill()->set_now(now);
  return command;
}

// Whether an agent says what became of the generation that it was told to run.
bool Accounts(const AgentRegistration& registration, const std::string& job, uint64_t generation) {
  return (registration.running_job() == job && registration.running_generation() == generation) ||
         std::any_of(registration.ended().begin(), registration.ended().end(),
                     [&](const GenerationEnded& ended) {
                       return ended.job() == job && ended.generation() == generation;
                     });
}

}  // namespace

absl::StatusOr<ClusterState::Node*> ClusterState::FindNode(const std::string& agent,
                                                           const std::string& incarnation) {
  const auto found = nodes_.find(agent);
  if (found == nodes_.end() || found->second.incarnation != incarnation) {
    return absl::FailedPreconditionError(
        fmt::format("stale agent {}: it has to register again", agent));
  }
  return &found->second;
}

absl::Duration ClusterState::LeaseOf(const Node& node) const {
  const Job* job = FindJob(node.busy_job);
  if (job == nullptr || job->ended()) return options_.lease_ttl;
  return std::min(options_.lease_ttl, absl::Seconds(job->spec().health().lease_ttl()));
}

bool ClusterState::Silent(const Node& node) const {
  return now_ >= node.renewed + kSilentShare * LeaseOf(node);
}

absl::Status ClusterState::On(const AgentJoined& event) {
  const auto old = nodes_.find(event.agent);
  if (old != nodes_.end() && old->second.incarnation != event.incarnation) {
    return absl::AlreadyExistsError(
        fmt::format("another agent is node {}; give this one another name", event.agent));
  }
  const AgentRegistration& registration = event.registration;
  const bool again = old != nodes_.end();
  if (again && !Accounts(registration, old->second.busy_job, old->second.busy_generation)) {
    DropNode(event.agent, "its agent registered again, without its generation");
  }
  leavers_.insert(event.agent);  // it may have been draining before
  Node& node = nodes_[event.agent];
  node.incarnation = event.incarnation;
  node.registration = registration;
  node.renewed = now_;
  if (node.joined == absl::Time()) node.joined = now_;
  AgentCommand command;
  AgentWelcome* welcome = command.mutable_welcome();
  welcome->set_lease_ttl_seconds(absl::ToDoubleSeconds(options_.lease_ttl));
  welcome->set_orphan_grace_seconds(absl::ToDoubleSeconds(options_.orphan_grace));
  const bool runs = registration.running_generation() != 0;
  welcome->set_adopted(runs && TakeBack(event, &node));
  const bool adopted = welcome->adopted();
  Send(event.agent, std::move(command));
  if (runs && !adopted) {
    Send(event.agent,
         Kill(registration.running_job(), registration.running_generation(), true));
  }
  for (Job* job : JobsInOrder()) {
    if (job->ended()) continue;
    if (!again) {
      Note(job, fmt::format("node {} joined with {} slots", event.agent, registration.slots()));
    }
    job->snapshots.Hold(event.agent, registration.held(), this);
    job->reconsider = now_ + options_.join_wait;
  }
  for (const GenerationEnded& ended : registration.ended()) {
    FreeAfter(ended, &node);
    if (Job* job = FindJob(ended.job()); job != nullptr && !job->ended()) {
      EndOn(job, event.agent, ended);
    }
  }
  for (Job* job : JobsInOrder()) {
    if (job->live == nullptr || !job->live->has(event.agent)) continue;
    const bool its = registration.running_job() == job->name() &&
                     registration.running_generation() == job->live->number();
    job->live->awaited.erase(event.agent);
    if (!its && job->live->unclean.erase(event.agent) > 0) {
      EndLive(job,
              Cause{.text = fmt::format("node {} came back without generation {}", event.agent,
                                        job->live->number())},
              true);
    } else {
      AdoptIfComplete(job);
    }
  }
  return absl::OkStatus();
}

void ClusterState::FreeAfter(const GenerationEnded& ended, Node* node) {
  if (node->busy_job != ended.job() || node->busy_generation != ended.generation()) return;
  node->busy_job.clear();
  node->busy_generation = 0;
}

// Whether the generation that the agent runs goes on. The node is busy with it either way.
bool ClusterState::TakeBack(const AgentJoined& event, Node* node) {
  node->busy_job = event.registration.running_job();
  node->busy_generation = event.registration.running_generation();
  const Job* job = FindJob(node->busy_job);
  return job != nullptr && job->live != nullptr && job->live->number() == node->busy_generation &&
         !job->live->killing && job->live->unclean.contains(event.agent);
}

absl::Status ClusterState::On(const AgentRenewed& event) {
  const absl::StatusOr<Node*> node = FindNode(event.agent, event.incarnation);
  if (!node.ok()) return node.status();
  (*node)->renewed = now_;
  return absl::OkStatus();
}

absl::Status ClusterState::On(const AgentLost& event) {
  const absl::StatusOr<Node*> node = FindNode(event.agent, event.incarnation);
  if (!node.ok()) return node.status();
  DropNode(event.agent, event.reason);
  return absl::OkStatus();
}

void ClusterState::DropNode(const std::string& agent, const std::string& reason) {
  const bool left = !nodes_[agent].leaving.empty();
  nodes_.erase(agent);
  for (Job* job : JobsInOrder()) {
    if (job->ended()) continue;
    Note(job, fmt::format("node {} was lost: {}", agent, reason));
    job->snapshots.Lose(agent, this);
    if (job->live == nullptr || !job->live->has(agent)) continue;
    job->live->awaited.erase(agent);
    const bool went_on = !job->live->killing && !job->live->exit_code;
    if (job->live->unclean.erase(agent) > 0 || went_on) {
      Cause cause{.text = fmt::format("node {} was lost: {}", agent, reason), .planned = left};
      if (!left) cause.blamed = {agent};
      EndLive(job, std::move(cause), true);
    } else {
      FinishIfClean(job);
    }
  }
}

// ---- Nodes that are to go.
// -----------------------------------------------------------------------

absl::Status ClusterState::On(const AgentPreempted& event) {
  const absl::StatusOr<Node*> node = FindNode(event.agent, event.incarnation);
  if (!node.ok()) return node.status();
  (*node)->leaving = event.reason.empty() ? "its host goes away" : event.reason;
  leavers_.insert(event.agent);
  MoveOff(event.agent);
  return absl::OkStatus();
}

absl::Status ClusterState::On(const NodeChangeRequested& event) {
  const std::string& name = event.request.node();
  const std::vector<std::string> remembered = book_.remembered(now_);
  if (!nodes_.contains(name) &&
      std::find(remembered.begin(), remembered.end(), name) == remembered.end()) {
    return absl::NotFoundError(fmt::format("there is no node {}", name));
  }
  switch (event.request.change()) {
    case ChangeNodeRequest::DRAIN:
      book_.Drain(name, absl::Seconds(event.request.deadline_seconds()), now_);
      leavers_.insert(name);
      MoveOff(name);
      break;
    case ChangeNodeRequest::CORDON:
      book_.Cordon(name);
      break;
    case ChangeNodeRequest::UNCORDON:
      book_.Uncordon(name);
      ReconsiderAll(now_);
      break;
    default:
      return absl::InvalidArgumentError("not a change of a node");
  }
  for (Job* job : JobsInOrder()) {
    if (!job->ended()) DescribeJob(job);
  }
  return absl::OkStatus();
}

void ClusterState::MoveOff(const std::string& agent) {
  for (Job* job : JobsInOrder()) {
    if (job->live == nullptr || !job->live->has(agent)) continue;
    if (!job->live->was_ready() && !job->live->killing) {
      EndLive(job,
              Cause{.text = fmt::format("node {} goes before its ranks were ready", agent),
                    .planned = true},
              false);
    } else {
      ConsiderChange(job);
    }
  }
}

void ClusterState::CheckDeadlines() {
  for (const auto& [name, node] : nodes_) {
    if (node.busy_generation == 0 || !book_.DeadlinePassed(name, now_)) continue;
    Job* job = FindJob(node.busy_job);
    if (job == nullptr || job->live == nullptr || job->live->killing || !job->live->has(name)) {
      continue;
    }
    EndLive(job,
            Cause{.text = fmt::format("the deadline to drain node {} has passed", name),
                  .planned = true},
            true);
  }
}

void ClusterState::SettleLeavers() {
  std::erase_if(leavers_, [this](const std::string& name) { return SettleLeaver(name); });
}

// Lets a node go that is to go and that nothing needs any more. Whether there is no more to do.
bool ClusterState::SettleLeaver(const std::string& name) {
  if (!nodes_.contains(name) || Stays(name)) return true;
  Node& node = nodes_[name];
  const bool needed = node.busy_generation != 0 ||
                      std::any_of(jobs_.begin(), jobs_.end(), [&](const auto& entry) {
                        return !entry.second->ended() &&
                               entry.second->snapshots.NeedsNode(name, *this);
                      });
  if (needed) return false;
  if (book_.Draining(name)) book_.Drained(name);
  if (node.leaving.empty() || node.told_to_leave) return true;
  node.told_to_leave = true;
  AgentCommand command;
  command.mutable_leave()->set_reason(node.leaving);
  Send(name, std::move(command));
  return true;
}

void ClusterState::Blame(const std::string& node, const std::string& why) {
  const std::optional<absl::Duration> cooldown = book_.Blame(node, now_);
  if (!cooldown) return;
  for (Job* job : JobsInOrder()) {
    if (job->ended()) continue;
    Note(job, fmt::format("node {} is cordoned for {}: failures were blamed on it, the last: {}",
                          node, absl::FormatDuration(*cooldown), why));
  }
}

// ---- After a restart of the coordinator.
// ---------------------------------------------------------

void ClusterState::Recall(Job* job) {
  JobStatus* status = job->record.mutable_status();
  job->trained_seconds = status->training_seconds();
  job->trained_tokens = status->tokens_per_second() * status->training_seconds();
  job->settle_from = now_;
  job->settle = options_.join_wait;
  const bool had_live = job->record.live().number() != 0;
  if (had_live) {
    job->live = std::make_unique<Generation>();
    Generation* live = job->live.get();
    live->record = job->record.live();
    live->ranks.resize(static_cast<size_t>(live->table().ranks_size()));
    live->trajectory_changes = {live->record.trajectory_changes().begin(),
                                live->record.trajectory_changes().end()};
    live->unclean = {live->record.nodes().begin(), live->record.nodes().end()};
    live->awaited = live->unclean;
    live->await_until = now_ + options_.lease_ttl + options_.adoption_wait;
    live->started = now_;
    live->started_at_step = live->table().restore().step();
    live->control.set_generation(live->number());
    live->control.set_stop(!live->record.stopping().empty());
    live->stragglers.emplace(live->ranks.size(), job->spec().health().straggler_ratio());
    job->last_nodes = {live->record.nodes().begin(), live->record.nodes().end()};
    live->killing = job->state() == ABORTING || !live->was_ready();
    if (live->killing) {
      live->cause = Cause{.text = "the coordinator was restarted", .planned = true};
      live->control.set_abort(true);
      status->set_state(ABORTING);
    }
    status->set_reason("the coordinator was restarted: waiting for its nodes to come back");
  } else {
    status->set_state(WAITING);
    status->set_reason("the coordinator was restarted");
    job->recall_until = now_ + options_.lease_ttl + options_.adoption_wait;
  }
  job->snapshots.Recall(OriginOf(*job), job->record.memory(), status->committed_step());
  if (job->live != nullptr) job->snapshots.FillControl(&job->live->control);
}

void ClusterState::AdoptIfComplete(Job* job) {
  Generation* live = job->live.get();
  if (live->await_until == absl::Time() || !live->awaited.empty()) return;
  live->await_until = absl::Time();
  if (live->killing) {
    FinishIfClean(job);
    return;
  }
  for (RankState& rank : live->ranks) rank.progressed = now_;
  const bool stop = live->control.stop();
  if (stop) live->stop_asked = now_;
  Note(job, fmt::format("generation {} is adopted: it went on while the coordinator was away",
                        live->number()));
  Transition(job, stop ? DRAINING : RUNNING,
             stop ? live->record.stopping()
                  : fmt::format("generation {}: {}", live->number(), live->record.layout()));
}

void ClusterState::CheckAwaited(Job* job) {
  Generation* live = job->live.get();
  if (live->awaited.empty() || now_ < live->await_until) return;
  const std::vector<std::string> missing(live->awaited.begin(), live->awaited.end());
  live->awaited.clear();
  for (const std::string& node : missing) live->unclean.erase(node);
  live->await_until = absl::Time();
  EndLive(
      job,
      Cause{.text = fmt::format("after a restart of the coordinator, nodes {} did not come back",
                                fmt::join(missing, ", "))},
      true);
}

}  // namespace moesaic
