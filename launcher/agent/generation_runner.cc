#include "launcher/agent/generation_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/foreign_text.h"
#include "base/log.h"
#include "scheduler/client/random_token.h"

namespace moesaic {
namespace {

// For a coordinator's message to overtake mpirun.
constexpr absl::Duration kStartWait = absl::Seconds(4);
constexpr absl::Duration kPoll = absl::Milliseconds(50);

}  // namespace

GenerationRunner::GenerationRunner(GenerationRunnerOptions options, AgentFolder* folder,
                                   AgentSnapshots* snapshots, Say say)
    : options_(std::move(options)),
      folder_(folder),
      snapshots_(snapshots),
      say_(std::move(say)),
      thread_([this] { Run(); }) {}

GenerationRunner::~GenerationRunner() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    if (run_ != nullptr) run_->Kill(true);
    if (daemon_ != nullptr) daemon_->Kill(true);
    changed_.NotifyAll();
  }
  thread_.join();
}

void GenerationRunner::Start(StartGeneration start) {
  MutexLock lock(&mutex_);
  starts_.push_back(std::move(start));
  changed_.NotifyAll();
}

void GenerationRunner::Kill(const KillGeneration& kill) {
  MutexLock lock(&mutex_);
  const auto is_meant = [&](const StartGeneration& start) {
    return start.job() == kill.job() && start.generation() == kill.generation();
  };
  if (!starts_.empty() && is_meant(starts_.front())) {
    killed_ = kill.now() ? 2 : std::max(killed_, 1);
    if (run_ != nullptr) run_->Kill(kill.now());
    if (daemon_ != nullptr) daemon_->Kill(kill.now());
  } else {
    starts_.erase(std::remove_if(starts_.begin(), starts_.end(), is_meant), starts_.end());
    already_over_.push_back(kill);
  }
  changed_.NotifyAll();
}

std::optional<StartGeneration> GenerationRunner::Running() const {
  MutexLock lock(&mutex_);
  if (starts_.empty()) return std::nullopt;
  return starts_.front();
}

void GenerationRunner::Run() {
  while (true) {
    std::optional<StartGeneration> start;
    std::deque<KillGeneration> already_over;
    {
      MutexLock lock(&mutex_);
      while (starts_.empty() && already_over_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (stopping_) return;
      if (!starts_.empty()) start = starts_.front();
      already_over.swap(already_over_);
    }
    for (const KillGeneration& kill : already_over) SayEnded(kill.job(), kill.generation(), {});
    if (!start) continue;
    const MpiRunResult result = RunGeneration(*start);
    {
      MutexLock lock(&mutex_);
      starts_.pop_front();
      killed_ = 0;
    }
    SayEnded(start->job(), start->generation(), result);
  }
}

void GenerationRunner::SayEnded(const std::string& job, uint64_t generation,
                                const MpiRunResult& result) {
  AgentMessage message;
  GenerationEnded* ended = message.mutable_ended();
  ended->set_job(job);
  ended->set_generation(generation);
  ended->set_exit_code(result.exit_code);
  ended->set_first_failure(result.first_failure);
  if (result.failed_rank) ended->set_failed_rank(*result.failed_rank);
  say_(std::move(message));
}

MpiRunResult GenerationRunner::RunGeneration(const StartGeneration& start) {
  // A name that no job can have.
  const std::string name = fmt::format("+g{}", start.generation());
  MpiRunResult result;
  const absl::Status arenas = snapshots_->Prepare(start.job());
  const absl::StatusOr<std::string> folder = folder_->Make(name);
  if (!arenas.ok() || !folder.ok()) {
    const absl::Status& status = arenas.ok() ? folder.status() : arenas;
    result = {.exit_code = 1, .first_failure = std::string(status.message())};
  } else if (start.head()) {
    result = RunHead(start, *folder);
  } else {
    result = RunOther(start, *folder);
  }
  if (!result.clean) LogError("processes of generation {} cannot be killed", start.generation());
  const absl::Status removed = folder_->Remove(name);
  if (!removed.ok()) LogWarning("{}", std::string(removed.message()));
  return result;
}

MpiRunResult GenerationRunner::RunHead(const StartGeneration& start, const std::string& folder) {
  MpiRunOptions options;
  options.start = start;
  options.host = options_.host;
  options.mpirun = options_.mpirun;
  options.worker = options_.worker;
  options.folder = folder;
  options.slots = options_.slots;
  options.shim = options_.shim;
  options.network = start.interface().empty() ? options_.network : start.interface();
  options.shim_environment = options_.shim_environment;
  MpiRun run(std::move(options));
  {
    MutexLock lock(&mutex_);
    run_ = &run;
    if (stopping_ || killed_ > 0) run.Kill(stopping_ || killed_ == 2);
  }
  MpiRunResult result = run.Run();
  MutexLock lock(&mutex_);
  run_ = nullptr;
  return result;
}

MpiRunResult GenerationRunner::RunOther(const StartGeneration& start, const std::string& folder) {
  const auto daemon = std::make_shared<DaemonRun>(DaemonRunOptions{.start = start,
                                                                   .host = options_.host,
                                                                   .orted = options_.orted,
                                                                   .worker = options_.worker,
                                                                   .folder = folder});
  {
    MutexLock lock(&mutex_);
    daemon_ = daemon;
    if (stopping_ || killed_ > 0) daemon->Kill(stopping_ || killed_ == 2);
    changed_.NotifyAll();
  }
  MpiRunResult result = daemon->Run();
  MutexLock lock(&mutex_);
  daemon_ = nullptr;
  return result;
}

absl::Status GenerationRunner::ServeDaemon(const RunDaemonRequest& request,
                                           const DaemonRun::Write& write,
                                           const DaemonRun::IsCancelled& is_cancelled) {
  const auto daemon = FindDaemon(request, is_cancelled);
  if (!daemon.ok()) return daemon.status();
  return (*daemon)->Serve(request, write, is_cancelled);
}

absl::StatusOr<std::shared_ptr<DaemonRun>> GenerationRunner::FindDaemon(
    const RunDaemonRequest& request, const DaemonRun::IsCancelled& is_cancelled) {
  const absl::Status stale = absl::FailedPreconditionError(
      fmt::format("stale generation: generation {} of job {} does not run here",
                  request.generation(), EscapeControls(request.job())));
  const absl::Time deadline = Clock::System().Now() + kStartWait;
  MutexLock lock(&mutex_);
  while (Clock::System().Now() < deadline && !stopping_ && !is_cancelled()) {
    if (daemon_ != nullptr && daemon_->start().job() == request.job() &&
        daemon_->start().generation() >= request.generation()) {
      const StartGeneration& start = daemon_->start();
      const bool is_current =
          start.generation() == request.generation() && SameToken(start.token(), request.token());
      if (!is_current) return stale;
      return daemon_;
    }
    changed_.WaitFor(&mutex_, kPoll);
  }
  return stale;
}

}  // namespace moesaic
