// ClusterState: what workers say, their health, and how a generation ends.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "scheduler/state/cluster_state.h"

namespace moesaic {
namespace {

// A step may take this many times the last one before its ranks count as hung, where that is longer
// than health.progress_timeout.
constexpr double kSlowStepFactor = 10;

absl::Status Stale(const WorkerIdentity& worker) {
  return absl::FailedPreconditionError(
      fmt::format("stale generation {} of job {} (rank {}): this process must exit",
                  worker.generation(), worker.job(), worker.rank()));
}

auto ProgressOf(const StepReport& report) {
  return std::make_tuple(report.step(), report.micro_batch());
}

std::string DescribeRank(const RankEntry& entry) {
  return fmt::format("rank {} on {}", entry.rank(), entry.node());
}

// "binary: ranks 0, 2 differ from rank 1"; empty when all are equal.
template <typename Get>
std::string DescribeDifference(absl::string_view what, size_t ranks, const Get& get) {
  std::map<std::string, std::vector<size_t>> groups;
  for (size_t rank = 0; rank < ranks; ++rank) groups[get(rank)].push_back(rank);
  if (groups.size() < 2) return "";
  std::vector<std::string> parts;
  for (const auto& [hash, members] : groups) {
    parts.push_back(fmt::format("ranks {}", fmt::join(members, ", ")));
  }
  return fmt::format("{}: {}", std::string(what), fmt::join(parts, " differ from "));
}

std::string DescribeExit(int code) {
  switch (code) {
    case 0:
      return "ended before the last step";
    case kWorkerMissing:
      return "a program is missing";
    case kWorkerPlanned:
      return "stopped without being asked";
    case kWorkerWatchdog:
      return "the watchdog ended it: a rank waited too long (exit code 86)";
    case kWorkerStale:
      return "it was told that it is stale (exit code 87)";
    case kWorkerMismatch:
      return "configuration or layout mismatch (exit code 88)";
    case kWorkerCorrupt:
      return "corrupt data (exit code 89)";
    case kWorkerNonFinite:
      return "the loss is not finite (exit code 90)";
    default:
      break;
  }
  if (code > 128 && code < 160) return fmt::format("killed by signal {}", code - 128);
  return fmt::format("exit code {}", code);
}

}  // namespace

// ---- Workers.
// ------------------------------------------------------------------------------------

absl::StatusOr<ClusterState::Job*> ClusterState::CheckWorker(const WorkerIdentity& worker) {
  Job* job = FindJob(worker.job());
  if (job == nullptr) return absl::NotFoundError(fmt::format("there is no job {}", worker.job()));
  if (job->live == nullptr || job->live->number != worker.generation()) return Stale(worker);
  if (!EqualInConstantTime(worker.token(), job->live->token)) {
    return absl::PermissionDeniedError("wrong token");
  }
  if (worker.rank() >= job->live->ranks.size()) {
    return absl::InvalidArgumentError(
        fmt::format("rank {} of a generation of {} ranks", worker.rank(), job->live->ranks.size()));
  }
  std::string& incarnation = job->live->ranks[worker.rank()].incarnation;
  if (!incarnation.empty() && incarnation != worker.incarnation()) return Stale(worker);
  incarnation = worker.incarnation();
  return job;
}

absl::Status ClusterState::On(const RankTableAsked& event) {
  return CheckWorker(event.worker).status();
}

absl::Status ClusterState::On(const RankReady& event) {
  const absl::StatusOr<Job*> job = CheckWorker(event.request.worker());
  if (!job.ok()) return job.status();
  Generation* live = (*job)->live.get();
  if (live->killing) return Stale(event.request.worker());
  RankState& rank = live->ranks[event.request.worker().rank()];
  rank.ready = true;
  rank.hashes = event.request;
  if ((*job)->state() == STARTING &&
      std::all_of(live->ranks.begin(), live->ranks.end(),
                  [](const RankState& state) { return state.ready; })) {
    AllReady(*job);
  } else if (live->was_ready) {  // asked again: the answer was lost
    out_.actions.push_back(AnswerReady{(*job)->name(), live->number, absl::OkStatus()});
  }
  return absl::OkStatus();
}

void ClusterState::AllReady(Job* job) {
  Generation* live = job->live.get();
  std::vector<std::string> differences;
  const auto compare = [&](absl::string_view what, const auto& get) {
    std::string text = DescribeDifference(what, live->ranks.size(), get);
    if (!text.empty()) differences.push_back(std::move(text));
  };
  compare("layout", [&](size_t r) { return live->ranks[r].hashes.layout_hash(); });
  compare("job", [&](size_t r) { return live->ranks[r].hashes.config_hash(); });
  compare("binary", [&](size_t r) { return live->ranks[r].hashes.binary_hash(); });
  compare("restored step",
          [&](size_t r) { return std::to_string(live->ranks[r].hashes.restored_step()); });
  if (!differences.empty()) {
    const std::string text =
        fmt::format("the ranks are not alike: {}", fmt::join(differences, "; "));
    EndLive(job, Cause{text, true, kJobFailed}, false);
    return;
  }
  live->was_ready = true;
  for (RankState& rank : live->ranks) rank.progressed = now_;
  out_.actions.push_back(AnswerReady{job->name(), live->number, absl::OkStatus()});
  Transition(job, RUNNING, fmt::format("generation {}: {}", live->number, live->layout));
}

absl::Status ClusterState::On(const StepReported& event) {
  const absl::StatusOr<Job*> job = CheckWorker(event.report.worker());
  if (!job.ok()) return job.status();
  RankState& rank = (*job)->live->ranks[event.report.worker().rank()];
  if (ProgressOf(event.report) != ProgressOf(rank.progress) ||
      event.report.phase() != rank.progress.phase()) {
    rank.progressed = now_;
  }
  rank.progress = event.report;
  if (event.report.has_metrics()) TakeMetrics(*job, event.report.metrics());
  return absl::OkStatus();
}

void ClusterState::TakeMetrics(Job* job, const StepMetrics& metrics) {
  JobStatus* status = job->record.mutable_status();
  const StepMetrics& last = status->last_step();
  if (metrics.step() > last.step() || metrics.generation() > last.generation()) {
    status->set_tokens(status->tokens() + metrics.tokens());
    job->trained_seconds += metrics.seconds();
    job->trained_tokens += metrics.tokens();
  }
  *status->mutable_last_step() = metrics;
  status->set_training_seconds(job->trained_seconds);
  if (job->trained_seconds > 0) {
    status->set_tokens_per_second(static_cast<double>(job->trained_tokens) / job->trained_seconds);
  }
  if (metrics.has_validation_loss()) status->set_validation_loss(metrics.validation_loss());
  JobEvent event;
  *event.mutable_step() = metrics;
  Publish(job, std::move(event));
}

// ---- Health.
// -------------------------------------------------------------------------------------

void ClusterState::CheckHealth(Job* job) {
  Generation* live = job->live.get();
  GiveUpSlow(job);
  if (live->killing || live->exit_code) {
    FinishIfClean(job);
    return;
  }
  if (live->was_ready) {
    CheckProgress(job);
    return;
  }
  const absl::Duration limit = absl::Seconds(job->spec().health().start_timeout());
  if (now_ < live->started + limit) return;
  std::vector<std::string> missing;
  for (size_t r = 0; r < live->ranks.size(); ++r) {
    if (!live->ranks[r].ready) missing.push_back(DescribeRank(live->table.ranks(r)));
  }
  EndLive(job,
          Cause{fmt::format("not ready within health.start_timeout ({}): {}",
                            absl::FormatDuration(limit), fmt::join(missing, ", "))},
          false);
}

void ClusterState::CheckProgress(Job* job) {
  Generation* live = job->live.get();
  double slowest = 0;
  for (const RankState& rank : live->ranks) {
    slowest = std::max(slowest, rank.progress.phase_seconds());
  }
  const absl::Duration limit =
      absl::Seconds(std::max(job->spec().health().progress_timeout(), kSlowStepFactor * slowest));
  bool hung = false;
  size_t suspect = 0;
  for (size_t r = 0; r < live->ranks.size(); ++r) {
    hung |= now_ >= live->ranks[r].progressed + limit;
    if (ProgressOf(live->ranks[r].progress) < ProgressOf(live->ranks[suspect].progress))
      suspect = r;
  }
  if (!hung) return;
  // The rank that is furthest behind holds up the others; among equals, the one that spoke first.
  for (size_t r = 0; r < live->ranks.size(); ++r) {
    if (ProgressOf(live->ranks[r].progress) == ProgressOf(live->ranks[suspect].progress) &&
        live->ranks[r].progressed < live->ranks[suspect].progressed) {
      suspect = r;
    }
  }
  const StepReport& last = live->ranks[suspect].progress;
  EndLive(job,
          Cause{fmt::format(
              "no progress for {} (health.progress_timeout); furthest behind is {}, in "
              "phase {} after step {}, micro-batch {}",
              absl::FormatDuration(limit), DescribeRank(live->table.ranks(suspect)),
              last.phase().empty() ? "start" : last.phase(), last.step(), last.micro_batch())},
          true);
}

// ---- The end of a generation.
// --------------------------------------------------------------------

void ClusterState::EndLive(Job* job, Cause cause, bool now) {
  Generation* live = job->live.get();
  if (!live->cause && !live->exit_code) live->cause = std::move(cause);
  KillLive(job, now);
  if (job->state() != ABORTING) {
    Transition(job, ABORTING, live->cause ? live->cause->text : live->first_failure);
  }
  FinishIfClean(job);
}

void ClusterState::KillLive(Job* job, bool now) {
  Generation* live = job->live.get();
  if (!live->control.abort()) {
    live->control.set_abort(true);
    PushControlOf(job);
    if (!live->was_ready) {
      const bool fatal = live->cause && live->cause->fatal;
      out_.actions.push_back(AnswerReady{
          job->name(), live->number,
          fatal ? absl::AbortedError(live->cause->text)
                : absl::FailedPreconditionError("stale generation: it is being ended")});
    }
  }
  live->killing = true;
  for (const std::string& agent : live->unclean) {
    AgentCommand command;
    command.mutable_kill()->set_job(job->name());
    command.mutable_kill()->set_generation(live->number);
    command.mutable_kill()->set_now(now);
    Send(agent, std::move(command));
  }
}

absl::Status ClusterState::On(const GenerationEnd& event) {
  const absl::StatusOr<Node*> node = FindNode(event.agent, event.incarnation);
  if (!node.ok()) return node.status();
  const GenerationEnded& report = event.report;
  if ((*node)->busy_job == report.job() && (*node)->busy_generation == report.generation()) {
    (*node)->busy_job.clear();
    (*node)->busy_generation = 0;
  }
  Job* job = FindJob(report.job());
  if (job == nullptr || job->live == nullptr || job->live->number != report.generation() ||
      job->live->unclean.erase(event.agent) == 0) {
    return absl::OkStatus();  // of the past: all it says is that the node is free
  }
  Generation* live = job->live.get();
  if (event.agent == live->head) {
    live->exit_code = report.exit_code();
    live->first_failure = report.first_failure();
    GiveUpUnfinished(job, "its generation ended before all ranks had copied");
    const bool expected =
        live->was_ready && (report.exit_code() == 0 || report.exit_code() == kWorkerPlanned);
    if (live->killing) {
      // Its state says why already.
    } else if (!expected) {
      Transition(job, ABORTING, report.first_failure());
    } else if (job->state() == RUNNING) {
      Transition(job, DRAINING, "the ranks have ended; saving");
    }
    if (!live->unclean.empty() && !live->killing) KillLive(job, true);
  } else if (!live->killing && !live->exit_code) {
    EndLive(
        job,
        Cause{fmt::format("the ranks on node {} ended: {}", event.agent, report.first_failure())},
        false);
    return absl::OkStatus();
  }
  FinishIfClean(job);
  return absl::OkStatus();
}

void ClusterState::FinishIfClean(Job* job) {
  if (job->live == nullptr || !job->live->unclean.empty()) return;
  GiveUpUnfinished(job, "its generation ended before all ranks had copied");
  if (job->record.stop() == STOP_NOW) {
    for (auto it = job->live->snapshots.begin(); it != job->live->snapshots.end();) {
      const auto [step, snapshot] = *it++;
      if (snapshot.phase != Snapshot::kCommitting) GiveUpSnapshot(job, step, "stopped at once");
    }
  }
  if (job->live->snapshots.empty()) FinishGeneration(job);
}

std::optional<ClusterState::Cause> ClusterState::FatalExit(const Generation& ended) {
  if (ended.cause && ended.cause->fatal) return ended.cause;
  if (ended.cause || !ended.exit_code) return std::nullopt;
  const std::string text = DescribeExit(*ended.exit_code);
  switch (*ended.exit_code) {
    case kJobBadConfig:
      return Cause{"the worker refused its configuration", true, kJobBadConfig};
    case kWorkerMismatch:
    case kWorkerCorrupt:
    case kWorkerNonFinite:
    case kWorkerMissing:
      return Cause{text, true, kJobFailed};
    case kJobBadCheckpoint: {
      const std::string& restored = ended.table.restore_path();
      const std::string path = restored.empty() ? ended.table.spec().train().init_from() : restored;
      return Cause{
          fmt::format("{} is corrupt; move it away to go on from the checkpoint before it, or "
                      "look at it with moesaic ckpt verify",
                      path),
          true, kJobBadCheckpoint};
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
  if (status.committed_step() >= job->spec().train().steps()) {
    EndJob(job, SUCCEEDED, 0, fmt::format("all {} steps are done", job->spec().train().steps()));
  } else if (job->record.stop() == STOP_NOW) {
    EndJob(job, CANCELLED, kJobCancelled, fmt::format("killed on request; {}", saved));
  } else if (const auto fatal = FatalExit(*ended)) {
    std::string text = fatal->text;
    if (!ended->first_failure.empty()) text += ": " + ended->first_failure;
    job->record.mutable_status()->set_last_failure(text);
    EndJob(job, FAILED, fatal->exit_code, text);
  } else if (job->record.stop() == STOP_GRACEFUL) {
    const bool all = status.committed_step() >= status.last_step().step();
    EndJob(job, CANCELLED, kJobCancelled,
           fmt::format("stopped on request{}; {}",
                       all ? "" : ", but the last steps could not be saved", saved));
  } else if (ended->exit_code == kWorkerPlanned && ended->draining_for_nodes && !ended->cause) {
    Transition(job, WAITING, "planning with the nodes that joined");
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
  }
  JobStatus* status = job->record.mutable_status();
  status->set_last_failure(fmt::format("generation {}: {}", ended.number, why));
  std::string budget;
  if (BudgetSpent(job, ended, &budget)) {
    EndJob(job, FAILED, kJobGaveUp, fmt::format("gave up: {}; last: {}", budget, why));
    return;
  }
  status->set_restarts(status->restarts() + 1);
  Transition(job, WAITING, fmt::format("restarting after: {}", why));
}

bool ClusterState::BudgetSpent(Job* job, const Generation& ended, std::string* why) {
  const HealthSpec& health = job->spec().health();
  job->failures.push_back(now_);
  while (job->failures.front() < now_ - absl::Seconds(health.failure_window())) {
    job->failures.pop_front();
  }
  const bool progressed = job->record.status().committed_step() > ended.committed_at_start;
  job->no_progress = progressed ? 0 : job->no_progress + 1;
  if (job->failures.size() > health.max_failures()) {
    *why = fmt::format("{} failures within {} (health.max_failures is {})", job->failures.size(),
                       absl::FormatDuration(absl::Seconds(health.failure_window())),
                       health.max_failures());
    return true;
  }
  if (job->no_progress >= health.max_no_progress_generations()) {
    *why = fmt::format(
        "{} generations in a row ended without a newer checkpoint "
        "(health.max_no_progress_generations)",
        job->no_progress);
    return true;
  }
  return false;
}

}  // namespace moesaic
