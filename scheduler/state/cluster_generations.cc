// ClusterState: what workers say, and whether they are well.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "scheduler/state/cluster_state.h"

namespace moesaic {
namespace {

constexpr char kStoppedPhase[] = "stopped";

// A step may take this many times the last one before its ranks count as hung, where that is longer
// than health.progress_timeout.
constexpr double kSlowStepFactor = 10;

// Steps that a generation may take to stop at one.
constexpr double kStopSteps = 3;

// After the ranks of another node are gone, mpirun on the head follows within so long, and says
// why.
constexpr absl::Duration kHeadFollows = absl::Seconds(5);

absl::Status Stale(const WorkerIdentity& worker) {
  return absl::FailedPreconditionError(
      fmt::format("stale generation {} of job {} (rank {}): this process must exit",
                  worker.generation(), worker.job(), worker.rank()));
}

// How far a rank has come within a step. Forward and backward alternate by micro-batch.
int OrderOfPhase(const std::string& phase) {
  static const std::map<std::string, int> kOrder = {
      {"open", 0},    {"restore", 1}, {"start", 2},  {"validate", 3}, {"step", 4}, {"snapshot", 5},
      {"forward", 6}, {"backward", 6}, {"reduce", 7}, {"update", 8},   {kStoppedPhase, 9},
      {"done", 9}};
  const auto found = kOrder.find(phase);
  return found == kOrder.end() ? 6 : found->second;
}

auto ProgressOf(const StepReport& report) {
  return std::make_tuple(report.step(), OrderOfPhase(report.phase()), report.micro_batch(),
                         report.phase() == "backward");
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

}  // namespace

// ---- Workers.
// ------------------------------------------------------------------------------------

absl::Status ClusterState::CheckGeneration(const WorkerIdentity& writer) const {
  const Job* job = FindJob(writer.job());
  if (job == nullptr) return absl::NotFoundError(fmt::format("there is no job {}", writer.job()));
  if (job->live == nullptr || job->live->number() != writer.generation()) return Stale(writer);
  return EqualInConstantTime(writer.token(), job->live->record.token())
             ? absl::OkStatus()
             : absl::PermissionDeniedError("wrong token");
}

absl::StatusOr<ClusterState::Job*> ClusterState::CheckWorker(const WorkerIdentity& worker) {
  if (const absl::Status current = CheckGeneration(worker); !current.ok()) return current;
  Job* job = FindJob(worker.job());
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
  } else if (live->was_ready()) {  // asked again: the answer was lost
    out_.actions.push_back(AnswerReady{(*job)->name(), live->number(), absl::OkStatus()});
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
    EndLive(job, Cause{text, true, kExitJobFailed}, false);
    return;
  }
  live->record.set_was_ready(true);
  live->start_took = now_ - live->started;
  for (RankState& rank : live->ranks) rank.progressed = now_;
  out_.actions.push_back(AnswerReady{job->name(), live->number(), absl::OkStatus()});
  Transition(job, RUNNING, fmt::format("generation {}: {}", live->number(), live->record.layout()));
}

absl::Status ClusterState::On(const StepReported& event) {
  const absl::StatusOr<Job*> job = CheckWorker(event.report.worker());
  if (!job.ok()) return job.status();
  RankState& rank = (*job)->live->ranks[event.report.worker().rank()];
  if (ProgressOf(event.report) != ProgressOf(rank.progress) ||
      event.report.phase() != rank.progress.phase()) {
    rank.progressed = now_;
  }
  TakeStepTime(*job, event.report);
  rank.progress = event.report;
  if (event.report.has_metrics()) TakeMetrics(*job, event.report.metrics());
  EndIfStopped(*job);
  return absl::OkStatus();
}

// Ranks that have stopped as asked, with all they know in memory, need not be waited for: mpirun
// takes seconds to notice that they are gone.
void ClusterState::EndIfStopped(Job* job) {
  const Generation& live = *job->live;
  if (live.killing || live.exit_code || !live.control.stop()) return;
  for (const RankState& rank : live.ranks) {
    if (rank.progress.phase() != kStoppedPhase) return;
    if (job->snapshots.newest_whole() < rank.progress.step()) return;
  }
  EndLive(job, Cause{.text = live.record.stopping(), .planned = true}, true);
}

void ClusterState::TakeStepTime(Job* job, const StepReport& report) {
  Generation* live = job->live.get();
  const uint32_t rank = report.worker().rank();
  if (report.phase_seconds() <= 0 || report.step() <= live->ranks[rank].progress.step()) return;
  live->stragglers->Add(rank, report.phase_seconds());
  if (rank != 0) return;  // once a step will do
  std::vector<std::string> slow;
  for (const Straggler& straggler : live->stragglers->Slow()) {
    slow.push_back(fmt::format("{}: {:.1f} times the median step",
                               DescribeRank(live->table().ranks(static_cast<int>(straggler.rank))),
                               straggler.ratio));
  }
  auto* known = job->record.mutable_status()->mutable_stragglers();
  const auto subject = [](const std::string& text) { return text.substr(0, text.find(':')); };
  const auto names = [&](const auto& texts, const std::string& text) {
    return std::any_of(texts.begin(), texts.end(),
                       [&](const std::string& t) { return subject(t) == subject(text); });
  };
  for (const std::string& text : slow) {
    if (!names(*known, text)) Note(job, fmt::format("slow: {}", text));
  }
  for (const std::string& text : *known) {
    if (!names(slow, text)) Note(job, fmt::format("no longer slow: {}", subject(text)));
  }
  *known = {slow.begin(), slow.end()};
}

void ClusterState::TakeMetrics(Job* job, const StepMetrics& metrics) {
  JobStatus* status = job->record.mutable_status();
  const StepMetrics& last = status->last_step();
  if (metrics.step() > last.step() || metrics.generation() > last.generation()) {
    status->set_tokens(status->tokens() + metrics.tokens());
    job->trained_seconds += metrics.seconds();
    job->live->step_seconds += metrics.seconds();
    ++job->live->steps;
    job->trained_tokens += static_cast<double>(metrics.tokens());
  }
  *status->mutable_last_step() = metrics;
  status->set_training_seconds(job->trained_seconds);
  if (job->trained_seconds > 0) {
    status->set_tokens_per_second(job->trained_tokens / job->trained_seconds);
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
  if (!live->awaited.empty()) {
    CheckAwaited(job);
    return;
  }
  if (live->killing || live->exit_code) {
    // Once mpirun is gone, a node that does not answer holds nobody up: its commits would be
    // refused, and its slots stay taken until its lease ends or it says that it is clean.
    const bool head_is_gone = live->exit_code || !nodes_.contains(live->record.head());
    if (head_is_gone) {
      std::erase_if(live->unclean, [&](const std::string& node) { return Silent(nodes_[node]); });
    }
    FinishIfClean(job);
    return;
  }
  for (const auto& [node, since] : live->early) {
    if (now_ < since + kHeadFollows) continue;
    EndLive(job,
            Cause{.text = fmt::format("the ranks on node {} ended: {}", node, live->early_failure),
                  .blamed = {node}},
            false);
    return;
  }
  if (live->was_ready()) {
    CheckProgress(job);
    return;
  }
  const absl::Duration limit = absl::Seconds(job->spec().health().start_timeout());
  if (now_ < live->started + limit) return;
  std::vector<std::string> missing;
  Cause cause;
  for (size_t r = 0; r < live->ranks.size(); ++r) {
    if (live->ranks[r].ready) continue;
    const RankEntry& entry = live->table().ranks(static_cast<int>(r));
    missing.push_back(DescribeRank(entry));
    if (!std::count(cause.blamed.begin(), cause.blamed.end(), entry.node())) {
      cause.blamed.push_back(entry.node());
    }
  }
  cause.text = fmt::format("not ready within health.start_timeout ({}): {}",
                           absl::FormatDuration(limit), fmt::join(missing, ", "));
  EndLive(job, std::move(cause), false);
}

// The rank that is furthest behind holds up the others; among equals, the one that spoke first.
size_t ClusterState::Suspect(const Generation& live) {
  size_t suspect = 0;
  for (size_t r = 1; r < live.ranks.size(); ++r) {
    const RankState& rank = live.ranks[r];
    const RankState& least = live.ranks[suspect];
    if (std::make_tuple(ProgressOf(rank.progress), rank.progressed) <
        std::make_tuple(ProgressOf(least.progress), least.progressed)) {
      suspect = r;
    }
  }
  return suspect;
}

// How long the ranks may make no progress. One that was asked to stop does so within a step, save
// for what lies between: validation, and waiting for a free buffer to copy into.
absl::Duration ClusterState::HangLimit(const Job& job, const StepReport& suspect) const {
  double slowest = 0;
  for (const RankState& rank : job.live->ranks) {
    slowest = std::max(slowest, rank.progress.phase_seconds());
  }
  const absl::Duration usual =
      absl::Seconds(std::max(job.spec().health().progress_timeout(), kSlowStepFactor * slowest));
  const bool excused = suspect.phase() == "validate" || suspect.phase() == "snapshot" ||
                       suspect.phase() == "step" || suspect.phase() == "done";
  if (!job.stopping() || excused) return usual;
  return std::min(usual,
                  std::max(options_.stop_timeout,
                           absl::Seconds(kStopSteps * job.record.status().last_step().seconds())));
}

void ClusterState::CheckProgress(Job* job) {
  Generation* live = job->live.get();
  const size_t suspect = Suspect(*live);
  const StepReport& last = live->ranks[suspect].progress;
  const absl::Duration limit = HangLimit(*job, last);
  const absl::Time since =
      job->stopping() ? std::max(live->stop_asked, live->ranks[suspect].progressed)
                      : absl::InfinitePast();
  const bool hung = std::any_of(live->ranks.begin(), live->ranks.end(), [&](const RankState& rank) {
    return now_ >= std::max(rank.progressed, since) + limit;
  });
  if (!hung) return;
  const RankEntry& entry = live->table().ranks(static_cast<int>(suspect));
  std::vector<size_t> victims;
  for (size_t r = 0; r < live->ranks.size(); ++r) {
    if (ProgressOf(live->ranks[r].progress) != ProgressOf(last)) victims.push_back(r);
  }
  std::string text = fmt::format(
      "no progress for {} ({}); the suspect is {}, in phase {} after step {}, micro-batch {}",
      absl::FormatDuration(limit),
      job->stopping() ? "it was asked to stop" : "health.progress_timeout", DescribeRank(entry),
      last.phase().empty() ? "start" : last.phase(), last.step(), last.micro_batch());
  if (!victims.empty()) {
    text += fmt::format("; victims, which wait for it: rank{} {}", victims.size() == 1 ? "" : "s",
                        fmt::join(victims, ", "));
  }
  EndLive(job, Cause{.text = std::move(text), .blamed = {entry.node()}}, true);
}

}  // namespace moesaic
