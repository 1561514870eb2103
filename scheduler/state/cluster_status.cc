// ClusterState: what people see of jobs and nodes.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "scheduler/state/cluster_state.h"

namespace moesaic {

void ClusterState::DescribeJob(Job* job) {
  JobStatus* status = job->record.mutable_status();
  const NodeRange& range = job->spec().elastic().nodes();
  status->set_min_nodes(job->record.min_nodes() != 0 ? job->record.min_nodes() : range.min());
  status->set_max_nodes(job->record.max_nodes() != 0 ? job->record.max_nodes() : range.max());
  status->set_max_failures(job->spec().health().max_failures());
  const int64_t window_begin =
      absl::ToUnixNanos(now_ - absl::Seconds(job->spec().health().failure_window()));
  auto* failures = job->record.mutable_failures_unix_ns();
  failures->erase(std::remove_if(failures->begin(), failures->end(),
                                 [&](int64_t at) { return at < window_begin; }),
                  failures->end());
  status->set_recent_failures(static_cast<uint32_t>(failures->size()));
  status->clear_nodes();
  if (!job->ended()) {
    if (job->live != nullptr) {
      for (const std::string& name : job->live->record.nodes()) status->add_nodes()->set_node(name);
    }
    for (const auto& [name, node] : nodes_) {
      if (job->live != nullptr && job->live->has(name)) continue;
      JobNode* spare = status->add_nodes();
      spare->set_node(name);
      spare->set_spare(true);
      spare->set_reason(WhySpare(*job, name));
    }
  }
  status->set_next(NextAction(*job));
}

std::string ClusterState::WhySpare(const Job& job, const std::string& name) const {
  const Node& node = nodes_.at(name);
  if (!node.leaving.empty()) return fmt::format("goes away: {}", node.leaving);
  if (const auto why = book_.WhyNot(name, now_)) return *why;
  if (node.busy_generation != 0) {
    return fmt::format("busy with generation {} of job {}", node.busy_generation, node.busy_job);
  }
  for (const SpareNode& spare : job.spares) {
    if (spare.id == name) return spare.reason;
  }
  return job.live == nullptr ? "free" : "joined since; it is considered once arrivals settle";
}

std::string ClusterState::NextAction(const Job& job) const {
  const JobStatus& status = job.record.status();
  const Generation* live = job.live.get();
  switch (status.state()) {
    case QUEUED:
    case WAITING:
      if (job.record.stop() != STOP_NONE) return "ends once its newest steps are saved";
      return fmt::format("starts generation {} once between {} and {} nodes are free",
                         status.generation() + 1, status.min_nodes(), status.max_nodes());
    case PLANNING:
      return fmt::format("starts generation {}", status.generation() + 1);
    case STARTING:
      return fmt::format("trains once all {} ranks are ready, at the latest in {}", status.ranks(),
                         absl::FormatDuration(
                             absl::Seconds(job.spec().health().start_timeout())));
    case RUNNING: {
      const uint64_t every = job.spec().checkpoint().every_steps();
      const uint64_t done =
          std::max(status.last_step().step(), live == nullptr ? 0 : live->started_at_step);
      uint64_t next = job.spec().train().steps();
      if (every > 0) next = std::min(next, (done / every + 1) * every);
      return fmt::format("saves a checkpoint at step {}", next);
    }
    case DRAINING:
      if (job.record.stop() != STOP_NONE) return "ends once its newest steps are saved";
      if (job.stopping()) {
        return fmt::format("starts generation {} after the step in progress",
                           status.generation() + 1);
      }
      return fmt::format("ends once step {} is on disk", status.total_steps());
    case ABORTING:
      if (live != nullptr && !live->unclean.empty()) {
        return fmt::format("plans anew once no process is left on {}",
                           fmt::join(live->unclean, ", "));
      }
      return fmt::format("plans anew once {} is saved or given up",
                         job.snapshots.DescribePending());
    default:
      return "";
  }
}

std::vector<NodeStatus> ClusterState::nodes(absl::Time now) const {
  std::map<std::string, NodeStatus> all;
  for (const std::string& name : book_.remembered(now)) all[name].set_state(NodeStatus::LOST);
  for (const auto& [name, node] : nodes_) {
    NodeStatus& status = all[name];
    status.set_slots(node.registration.slots());
    status.set_cores(node.registration.cores());
    status.set_host(node.registration.host());
    status.set_job(node.busy_job);
    status.set_generation(node.busy_generation);
    status.set_lease_age_seconds(
        absl::ToDoubleSeconds(now - node.renewed));
    status.set_state(node.busy_generation == 0 ? NodeStatus::FREE : NodeStatus::BUSY);
    if (node.busy_generation == 0) {
      for (const auto& [job_name, job] : jobs_) {
        for (const SpareNode& spare : job->spares) {
          if (spare.id != name || job->live == nullptr) continue;
          status.set_state(NodeStatus::SPARE);
          status.set_reason(fmt::format("job {}: {}", job_name, spare.reason));
        }
      }
    }
    if (!node.leaving.empty()) {
      status.set_state(NodeStatus::DRAINING);
      status.set_reason(node.leaving);
    }
  }
  for (auto& [name, status] : all) {
    status.set_node(name);
    status.set_blamed_failures(book_.RecentBlames(name, now));
    const auto why = book_.WhyNot(name, now);
    if (!why) continue;
    status.set_reason(*why);
    const absl::Time until = book_.CordonedUntil(name, now);
    if (until != absl::InfiniteFuture() && until > now) {
      status.set_cordoned_seconds(absl::ToDoubleSeconds(until - now));
    }
    if (status.state() == NodeStatus::LOST) continue;
    status.set_state(book_.Draining(name) ? NodeStatus::DRAINING : NodeStatus::CORDONED);
  }
  std::vector<NodeStatus> listed;
  for (auto& [name, status] : all) listed.push_back(std::move(status));
  return listed;
}

std::string ClusterState::DebugString() const {
  std::string text;
  for (const auto& [name, node] : nodes_) {
    text += fmt::format("{} {} lease {} busy {}/{} leaving '{}' {}\n{}", name, node.incarnation,
                        absl::ToUnixNanos(node.renewed), node.busy_job, node.busy_generation,
                        node.leaving, node.told_to_leave, node.registration.DebugString());
  }
  for (const auto& [name, job] : jobs_) {
    text += job->record.DebugString() + job->snapshots.DebugString();
    text += fmt::format("attempt {} verify {} {} reconsider {}\n", job->attempt,
                        job->verify_content, job->verified, absl::ToUnixNanos(job->reconsider));
    if (job->live == nullptr) continue;
    const Generation& live = *job->live;
    text += live.record.DebugString() + live.control.DebugString();
    text += fmt::format("unclean {} awaited {} killing {} exit {}\n", fmt::join(live.unclean, ","),
                        fmt::join(live.awaited, ","), live.killing, live.exit_code.value_or(-1));
    for (const RankState& rank : live.ranks) {
      text += fmt::format("rank {} {} {} {}\n", rank.incarnation, rank.ready,
                          absl::ToUnixNanos(rank.progressed), rank.progress.DebugString());
    }
  }
  return text;
}

}  // namespace moesaic
