#include "launcher/agent/agent_snapshots.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "launcher/agent/command_check.h"
#include "trainer/checkpoint/format/shard_files.h"

namespace moesaic {

AgentSnapshots::AgentSnapshots(AgentFolder* folder, SnapshotPeerFactory open_peer, Say say)
    : folder_(folder),
      open_peer_(std::move(open_peer)),
      say_(std::move(say)),
      memory_({.folder = folder->path()}),
      thread_([this] { Run(); }) {}

AgentSnapshots::~AgentSnapshots() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void AgentSnapshots::Enqueue(AgentCommand command) {
  MutexLock lock(&mutex_);
  queue_.push_back(std::move(command));
  changed_.NotifyAll();
}

void AgentSnapshots::Persist(PersistSnapshot persist) {
  AgentCommand command;
  *command.mutable_persist() = std::move(persist);
  Enqueue(std::move(command));
}

void AgentSnapshots::Replicate(ReplicateSnapshot replicate) {
  AgentCommand command;
  *command.mutable_replicate() = std::move(replicate);
  Enqueue(std::move(command));
}

void AgentSnapshots::Forget(ForgetJob forget) {
  memory_.Forget(forget.job());  // now: the next generation of that name may be admitted at once
  AgentCommand command;
  *command.mutable_forget() = std::move(forget);
  Enqueue(std::move(command));
}

bool AgentSnapshots::WillForget(const std::string& job) const {
  return std::any_of(queue_.begin(), queue_.end(), [&](const AgentCommand& command) {
    return command.has_forget() && command.forget().job() == job;
  });
}

absl::Status AgentSnapshots::Prepare(const std::string& job) {
  MutexLock lock(&mutex_);
  while (WillForget(job) && !stopping_) changed_.Wait(&mutex_);
  return folder_->Make(job).status();
}

void AgentSnapshots::Run() {
  while (true) {
    AgentCommand command;
    {
      MutexLock lock(&mutex_);
      while (queue_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (stopping_) return;
      command = queue_.front();
    }
    Do(command);
    MutexLock lock(&mutex_);
    queue_.pop_front();
    changed_.NotifyAll();
  }
}

void AgentSnapshots::Do(const AgentCommand& command) {
  if (command.has_persist()) return PersistRanks(command.persist());
  if (command.has_replicate()) return ReplicateRanks(command.replicate());
  const absl::Status removed = folder_->Remove(command.forget().job());
  if (!removed.ok()) LogWarning("{}", std::string(removed.message()));
}

void AgentSnapshots::ReplicateRanks(const ReplicateSnapshot& replicate) {
  AgentMessage message;
  SnapshotReplicated* replicated = message.mutable_replicated();
  replicated->set_job(replicate.job());
  replicated->set_generation(replicate.generation());
  replicated->set_step(replicate.step());
  const auto copies = memory_.Replicate(replicate, open_peer_(replicate.from()));
  if (copies.ok()) {
    replicated->mutable_copies()->Assign(copies->begin(), copies->end());
  } else {
    replicated->set_error(fmt::format("from {}: {}", replicate.from(),
                                      std::string(copies.status().message())));
  }
  say_(std::move(message));
}

void AgentSnapshots::PersistRanks(const PersistSnapshot& persist) {
  for (const RankArena& arena : persist.arenas()) {
    AgentMessage message;
    *message.mutable_persisted() = PersistRank(persist, arena);
    say_(std::move(message));
  }
}

ShardsPersisted AgentSnapshots::PersistRank(const PersistSnapshot& persist,
                                            const RankArena& arena) const {
  absl::StatusOr<ShardsPersisted> written = WriteRank(persist, arena);
  ShardsPersisted report;
  if (written.ok()) {
    report = *std::move(written);
  } else {
    report.set_error(std::string(written.status().message()));
  }
  report.set_job(persist.job());
  report.set_generation(persist.generation());
  report.set_step(persist.step());
  report.set_staging(persist.staging());
  report.set_rank(arena.rank());
  return report;
}

absl::StatusOr<ShardsPersisted> AgentSnapshots::WriteRank(const PersistSnapshot& persist,
                                                          const RankArena& arena) const {
  const absl::StatusOr<std::string> below =
      ArenaBelow(folder_->path(), persist.job(), arena.path());
  if (!below.ok()) return below.status();
  const auto reader = SnapshotReader::OpenBelow(folder_->path(), *below);
  if (!reader.ok()) return reader.status();
  const SnapshotIndex& index = (*reader)->index();
  if (index.job() != persist.job() || index.generation() != persist.generation() ||
      index.rank() != arena.rank()) {
    return absl::FailedPreconditionError(
        fmt::format("stale snapshot in {}: rank {} of generation {} of job {}", arena.path(),
                    index.rank(), index.generation(), index.job()));
  }
  const auto staging = OpenStaging(&FileSystem::System(), persist.staging());
  if (!staging.ok()) return staging.status();
  const std::unique_ptr<EarlierStep> earlier =
      OpenEarlierStep(&FileSystem::System(), persist.staging(), persist.step());
  return PersistShards(**reader, persist.step(), staging->get(), earlier.get());
}

}  // namespace moesaic
