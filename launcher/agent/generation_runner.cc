#include "launcher/agent/generation_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace moesaic {

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
  say_(std::move(message));
}

MpiRunResult GenerationRunner::RunGeneration(const StartGeneration& start) {
  // A name that no job can have.
  const std::string name = fmt::format("+g{}", start.generation());
  MpiRunResult result;
  const absl::Status arenas = snapshots_->Prepare(start.job());
  const absl::StatusOr<std::string> folder = folder_->Make(name);
  if (!arenas.ok() || !folder.ok()) {
    result = {1, std::string((arenas.ok() ? folder.status() : arenas).message())};
  } else if (start.head()) {
    result = RunHead(start, *folder);
  } else {
    WaitForKill();
  }
  if (!result.clean) LogError("processes of generation {} cannot be killed", start.generation());
  const absl::Status removed = folder_->Remove(name);
  if (!removed.ok()) LogWarning("{}", std::string(removed.message()));
  return result;
}

MpiRunResult GenerationRunner::RunHead(const StartGeneration& start, const std::string& folder) {
  MpiRunOptions options;
  options.start = start;
  options.coordinator = options_.coordinator;
  options.mpirun = options_.mpirun;
  options.worker = options_.worker;
  options.folder = folder;
  options.run_id = folder;
  options.slots = options_.slots;
  options.environment = options_.environment;
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

// The ranks of a node that is not the head are the head's children.
void GenerationRunner::WaitForKill() {
  MutexLock lock(&mutex_);
  while (killed_ == 0 && !stopping_) changed_.Wait(&mutex_);
}

}  // namespace moesaic
