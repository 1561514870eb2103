// ClusterState: how a generation ends, whose fault it was, and what follows.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "scheduler/state/cluster_state.h"

namespace moesaic {
namespace {

std::string DescribeExit(int code) {
  switch (code) {
    case 0:
      return "ended before the last step";
    case kExitNotStarted:
      return "a program is missing";
    case kExitSnapshotLost:
      return "a snapshot in memory that it was to start from is lost (exit code 74)";
    case kExitPlannedRestart:
      return "stopped without being asked";
    case kExitWatchdog:
      return "the watchdog ended it: a rank waited too long (exit code 86)";
    case kExitStaleGeneration:
      return "it was told that it is stale (exit code 87)";
    case kExitMismatch:
      return "configuration or layout mismatch (exit code 88)";
    case kExitDataCorrupt:
      return "corrupt data (exit code 89)";
    case kExitNonFinite:
      return "the loss is not finite (exit code 90)";
    default:
      break;
  }
  if (code > 128 && code < 160) return fmt::format("killed by signal {}", code - 128);
  return fmt::format("exit code {}", code);
}

}  // namespace

void ClusterState::EndLive(Job* job, Cause cause, bool now) {
  Generation* live = job->live.get();
  if (!live->cause && !live->exit_code) live->cause = std::move(cause);
  KillLive(job, now);
  const bool planned = live->cause && live->cause->planned && job->state() == DRAINING;
  if (job->state() != ABORTING && !planned) {
    Transition(job, ABORTING, live->cause ? live->cause->text : live->first_failure);
  }
  FinishIfClean(job);
}

void ClusterState::KillLive(Job* job, bool now) {
  Generation* live = job->live.get();
  if (!live->control.abort()) {
    live->control.set_abort(true);
    PushControlOf(job);
    if (!live->was_ready()) {
      const bool fatal = live->cause && live->cause->fatal;
      out_.actions.push_back(AnswerReady{
          job->name(), live->number(),
          fatal ? absl::AbortedError(live->cause->text)
                : absl::FailedPreconditionError("stale generation: it is being ended")});
    }
  }
  live->killing = true;
  for (const std::string& agent : live->unclean) {
    if (!nodes_.contains(agent)) continue;
    AgentCommand command;
    command.mutable_kill()->set_job(job->name());
    command.mutable_kill()->set_generation(live->number());
    command.mutable_kill()->set_now(now);
    Send(agent, std::move(command));
  }
}

absl::Status ClusterState::On(const GenerationEnd& event) {
  const absl::StatusOr<Node*> node = FindNode(event.agent, event.incarnation);
  if (!node.ok()) return node.status();
  FreeAfter(event.report, *node);
  if (Job* job = FindJob(event.report.job()); job != nullptr) {
    EndOn(job, event.agent, event.report);
  }
  return absl::OkStatus();
}

void ClusterState::EndOn(Job* job, const std::string& agent, const GenerationEnded& report) {
  if (job->live == nullptr || job->live->number() != report.generation() ||
      job->live->unclean.erase(agent) == 0) {
    return;  // of the past: all it says is that the node is free
  }
  Generation* live = job->live.get();
  live->awaited.erase(agent);
  if (agent == live->record.head()) {
    live->exit_code = report.exit_code();
    live->first_failure = report.first_failure();
    if (report.has_failed_rank()) live->failed_rank = report.failed_rank();
    job->snapshots.EndCollecting(this);
    const bool expected =
        live->was_ready() && (report.exit_code() == 0 || report.exit_code() == kExitPlannedRestart);
    if (live->killing) {
      // Its state says why already.
    } else if (!expected) {
      Transition(job, ABORTING, report.first_failure());
    } else if (job->state() == RUNNING) {
      Transition(job, DRAINING, "the ranks have ended; saving");
    }
    if (!live->unclean.empty() && !live->killing) KillLive(job, true);
  } else if (!live->killing && !live->exit_code) {
    live->early[agent] = now_;
    if (live->early_failure.empty()) live->early_failure = report.first_failure();
  }
  FinishIfClean(job);
}

void ClusterState::FinishIfClean(Job* job) {
  if (job->live == nullptr || !job->live->unclean.empty()) return;
  job->snapshots.EndCollecting(this);
  if (job->record.stop() == STOP_NOW) job->snapshots.GiveUpUncommitted("stopped at once", this);
  if (!MustWaitForDisk(job)) FinishGeneration(job);
}

// Whether what follows depends on a checkpoint that is on its way to disk. Where the next
// generation can start from memory, the disk follows while it runs.
bool ClusterState::MustWaitForDisk(Job* job) {
  const Generation& live = *job->live;
  const bool last = job->record.stop() != STOP_NONE || FatalExit(*job, live).has_value() ||
                    (!live.cause && live.exit_code == 0) || BudgetSpent(*job, live).has_value();
  const bool change = job->stopping() || (live.cause && live.cause->planned);
  const auto memory = FromMemory(*job);
  if (job->record.stop() != STOP_NOW && (last || change || !memory)) {
    job->snapshots.WantNewest(this);
  }
  if (last || !memory) return job->snapshots.Pending();
  return job->snapshots.Committing(memory->step);
}

std::optional<ClusterState::Cause> ClusterState::FatalExit(const Job& job,
                                                           const Generation& ended) {
  if (ended.cause && ended.cause->fatal) return ended.cause;
  if (ended.cause || !ended.exit_code) return std::nullopt;
  const std::string text = DescribeExit(*ended.exit_code);
  switch (*ended.exit_code) {
    case kExitUsage:
      return Cause{
          .text = "the worker refused its configuration", .fatal = true, .exit_code = kExitUsage};
    case kExitMismatch:
    case kExitDataCorrupt:
    case kExitNonFinite:
    case kExitNotStarted:
      return Cause{.text = text, .fatal = true};
    case kExitCheckpointInvalid: {
      // Another checkpoint may be whole, unless this one was read whole before it was chosen.
      const std::string& restored = ended.table().restore_path();
      if (!restored.empty() && !job.verified) return std::nullopt;
      const std::string path =
          restored.empty() ? ended.table().spec().train().init_from() : restored;
      return Cause{
          .text = fmt::format("{} is corrupt; move it away to go on from the checkpoint before it, "
                              "or look at it with moesaic ckpt verify",
                              path),
          .fatal = true,
          .exit_code = kExitCheckpointInvalid};
    }
    default:
      return std::nullopt;
  }
}

void ClusterState::FinishGeneration(Job* job) {
  const std::unique_ptr<Generation> ended = std::move(job->live);
  const JobStatus& status = job->record.status();
  const std::string saved =
      status.committed_step() == 0
          ? std::string("nothing was saved")
          : fmt::format("the newest checkpoint is step {}", status.committed_step());
  job->settle_from = now_;
  job->settle = absl::ZeroDuration();
  BlameFor(*job, *ended);
  if (status.committed_step() >= job->spec().train().steps()) {
    EndJob(job, SUCCEEDED, 0, fmt::format("all {} steps are done", job->spec().train().steps()));
  } else if (job->record.stop() == STOP_NOW) {
    EndJob(job, CANCELLED, kExitCancelled, fmt::format("killed on request; {}", saved));
  } else if (const auto fatal = FatalExit(*job, *ended)) {
    std::string text = fatal->text;
    if (!ended->first_failure.empty()) text += ": " + ended->first_failure;
    job->record.mutable_status()->set_last_failure(text);
    EndJob(job, FAILED, fatal->exit_code, text);
  } else if (job->record.stop() == STOP_GRACEFUL) {
    const bool all = status.committed_step() >= status.last_step().step();
    EndJob(job, CANCELLED, kExitCancelled,
           fmt::format("stopped on request{}; {}",
                       all ? "" : ", but the last steps could not be saved", saved));
  } else if (ended->cause ? ended->cause->planned
                          : ended->exit_code == kExitPlannedRestart && ended->control.stop()) {
    job->record.mutable_status()->set_resizes(status.resizes() + 1);
    Transition(job, WAITING,
               fmt::format("planning anew: {}", ended->cause ? ended->cause->text
                                                             : ended->record.stopping()));
  } else {
    FinishFailed(job, *ended);
  }
}

void ClusterState::FinishFailed(Job* job, const Generation& ended) {
  std::string why;
  if (ended.cause) {
    why = ended.cause->text;
  } else if (ended.exit_code) {
    why = ended.first_failure.empty() || *ended.exit_code < 100 ? DescribeExit(*ended.exit_code)
                                                                : std::string();
    if (!ended.first_failure.empty()) why += (why.empty() ? "" : ": ") + ended.first_failure;
    if (*ended.exit_code == 0 &&
        ended.control.aborted_snapshot_step() >= job->spec().train().steps()) {
      why = "the last checkpoint could not be saved";
    }
    if (*ended.exit_code == kExitCheckpointInvalid) {
      job->verify_content = true;
      Note(job, fmt::format("WARNING: {} is damaged; looking for one that is whole",
                            ended.table().restore_path()));
    }
    if (*ended.exit_code == kExitSnapshotLost) {
      job->snapshots.Distrust(ended.table().restore().step(), this);
    }
  }
  JobStatus* status = job->record.mutable_status();
  status->set_last_failure(fmt::format("generation {}: {}", ended.number(), why));
  const std::optional<std::string> budget = BudgetSpent(*job, ended);
  job->record.set_no_progress(Progressed(*job, ended) ? 0 : job->record.no_progress() + 1);
  job->record.add_failures_unix_ns(absl::ToUnixNanos(now_));
  if (budget) {
    EndJob(job, FAILED, kExitGaveUp, fmt::format("gave up: {}; last: {}", *budget, why));
    return;
  }
  job->settle = options_.failure_wait;
  status->set_restarts(status->restarts() + 1);
  Transition(job, WAITING, fmt::format("restarting after: {}", why));
}

// The node of the rank that failed first. A watchdog speaks for a victim: there, the suspect's.
// What a rank could not read is no fault of its node.
void ClusterState::BlameFor(const Job& job, const Generation& ended) {
  if (ended.cause) {
    for (const std::string& node : ended.cause->blamed) Blame(node, ended.cause->text);
    return;
  }
  if (!ended.exit_code) return;
  constexpr int kNobodysFault[] = {0, kExitPlannedRestart, kExitSnapshotLost,
                                   kExitCheckpointInvalid};
  if (std::ranges::count(kNobodysFault, *ended.exit_code) > 0) return;
  std::optional<uint32_t> rank = ended.failed_rank;
  if (*ended.exit_code == kExitWatchdog) rank = static_cast<uint32_t>(Suspect(ended));
  if (rank && *rank < ended.ranks.size() && !FatalExit(job, ended)) {
    Blame(ended.table().ranks(static_cast<int>(*rank)).node(), ended.first_failure);
  }
}

// Whether there is something newer to go on from than this generation had.
bool ClusterState::Progressed(const Job& job, const Generation& ended) const {
  const auto memory = FromMemory(job);
  return std::max(job.record.status().committed_step(), memory ? memory->step : 0) >
         ended.started_at_step;
}

// Why the job is given up if this generation counts as a failure; nullopt: it may go on.
std::optional<std::string> ClusterState::BudgetSpent(const Job& job,
                                                     const Generation& ended) const {
  const bool planned = ended.cause ? ended.cause->planned
                                   : ended.exit_code == kExitPlannedRestart && ended.control.stop();
  if (planned) return std::nullopt;
  const HealthSpec& health = job.spec().health();
  const int64_t since = absl::ToUnixNanos(now_ - absl::Seconds(health.failure_window()));
  const auto& times = job.record.failures_unix_ns();
  const auto failures =
      1 + std::count_if(times.begin(), times.end(), [&](int64_t at) { return at >= since; });
  if (failures > static_cast<int64_t>(health.max_failures())) {
    return fmt::format("{} failures within {} (health.max_failures is {})", failures,
                       absl::FormatDuration(absl::Seconds(health.failure_window())),
                       health.max_failures());
  }
  const uint32_t no_progress = Progressed(job, ended) ? 0 : job.record.no_progress() + 1;
  if (no_progress >= health.max_no_progress_generations()) {
    return fmt::format(
        "{} generations in a row ended with nothing newer to go on from "
        "(health.max_no_progress_generations)",
        no_progress);
  }
  return std::nullopt;
}

}  // namespace moesaic
