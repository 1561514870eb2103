#include "launcher/agent/agent.h"

#include <fmt/format.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <deque>
#include <optional>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "launcher/agent/agent_folder.h"
#include "launcher/agent/mpi_run.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/client/channel.h"
#include "scheduler/client/random_token.h"
#include "trainer/checkpoint/format/shard_files.h"

namespace moesaic {
namespace {

constexpr absl::Duration kRenewEvery = absl::Seconds(1);
constexpr absl::Duration kReconnectDelay = absl::Milliseconds(500);

using Session = grpc::ClientReaderWriter<AgentMessage, AgentCommand>;

class RunningAgent : public Agent {
 public:
  RunningAgent(AgentOptions options, std::unique_ptr<AgentFolder> folder)
      : options_(std::move(options)),
        incarnation_(RandomToken()),
        folder_(std::move(folder)),
        stub_(Coordinator::NewStub(OpenCoordinatorChannel(options_.coordinator))) {
    session_thread_ = std::thread([this] { KeepSession(); });
    renewal_thread_ = std::thread([this] { RenewLease(); });
    generation_thread_ = std::thread([this] { RunGenerations(); });
    persist_thread_ = std::thread([this] { PersistSnapshots(); });
  }

  ~RunningAgent() override {
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      if (run_ != nullptr) run_->Kill(true);
      if (context_ != nullptr) context_->TryCancel();
      changed_.NotifyAll();
    }
    generation_thread_.join();
    persist_thread_.join();
    renewal_thread_.join();
    session_thread_.join();
  }

 private:
  // ---- The session.
  // ------------------------------------------------------------------------------

  void KeepSession() {
    while (true) {
      const absl::Status status = RunSession();
      MutexLock lock(&mutex_);
      context_ = nullptr;
      if (stopping_) return;
      LogWarning("agent {}: the coordinator's stream ended ({}); connecting again", options_.name,
                 std::string(status.message()));
      changed_.WaitFor(&mutex_, kReconnectDelay);
      if (stopping_) return;
    }
  }

  absl::Status RunSession() {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    {
      MutexLock lock(&mutex_);
      if (stopping_) return absl::OkStatus();
      context_ = &context;
    }
    const std::unique_ptr<Session> session = stub_->AgentSession(&context);
    {
      MutexLock lock(&write_mutex_);
      session_ = session.get();
    }
    Register();
    AgentCommand command;
    while (session->Read(&command)) Obey(command);
    {
      MutexLock lock(&write_mutex_);
      session_ = nullptr;
    }
    context.TryCancel();  // a writer may be waiting
    return FromGrpc(session->Finish());
  }

  void Register() {
    AgentMessage message;
    AgentRegistration* registration = message.mutable_registration();
    registration->set_slots(options_.slots);
    registration->set_cores(options_.cores);
    registration->set_memory_bytes(static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                                   static_cast<uint64_t>(sysconf(_SC_PAGESIZE)));
    registration->set_host(options_.host);
    registration->set_version(options_.version);
    registration->set_arena_dir(folder_->path());
    {
      MutexLock lock(&mutex_);
      if (running_) {
        registration->set_running_job(running_->job());
        registration->set_running_generation(running_->generation());
      }
    }
    Say(std::move(message));
  }

  // Messages that find no session are lost: registration says what matters of them.
  void Say(AgentMessage message) {
    message.set_agent(options_.name);
    message.set_incarnation(incarnation_);
    MutexLock lock(&write_mutex_);
    if (session_ != nullptr) session_->Write(message);
  }

  void RenewLease() {
    while (true) {
      {
        MutexLock lock(&mutex_);
        if (!stopping_) changed_.WaitFor(&mutex_, kRenewEvery);
        if (stopping_) return;
      }
      AgentMessage message;
      message.mutable_renewal();
      Say(std::move(message));
    }
  }

  void Obey(const AgentCommand& command) {
    MutexLock lock(&mutex_);
    switch (command.kind_case()) {
      case AgentCommand::kStart:
        running_ = command.start();
        starting_ = true;
        break;
      case AgentCommand::kKill:
        Kill(command.kill());
        break;
      case AgentCommand::kPersist:
        persist_.push_back(command.persist());
        break;
      case AgentCommand::kForget:
        forget_.push_back(command.forget().job());
        break;
      case AgentCommand::kWelcome:
        LogDebug("agent {} is registered", options_.name);
        break;
      case AgentCommand::kReplicate:
      case AgentCommand::kKeep:
      case AgentCommand::kLeave:
      case AgentCommand::KIND_NOT_SET:
        break;
    }
    changed_.NotifyAll();
  }

  void Kill(const KillGeneration& kill) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (running_ && running_->job() == kill.job() && running_->generation() == kill.generation()) {
      killed_ = kill.now() ? 2 : std::max(killed_, 1);
      if (run_ != nullptr) run_->Kill(kill.now());
    } else {
      ended_.push_back(Ended(kill.job(), kill.generation(), {}));  // it is over already
    }
  }

  // ---- Generations: one at a time, all from one thread, with which they die.
  // ---------------------

  static GenerationEnded Ended(const std::string& job, uint64_t generation,
                               const MpiRunResult& result) {
    GenerationEnded ended;
    ended.set_job(job);
    ended.set_generation(generation);
    ended.set_exit_code(result.exit_code);
    ended.set_first_failure(result.first_failure);
    return ended;
  }

  void RunGenerations() {
    while (true) {
      std::optional<StartGeneration> start;
      std::vector<GenerationEnded> ended;
      std::vector<std::string> forget;
      {
        MutexLock lock(&mutex_);
        while (!starting_ && ended_.empty() && !CanForget() && !stopping_) changed_.Wait(&mutex_);
        if (stopping_) return;
        if (starting_) start = running_;
        starting_ = false;
        ended.swap(ended_);
        if (CanForget()) forget.swap(forget_);
      }
      for (GenerationEnded& end : ended) SayEnded(std::move(end));
      for (const std::string& job : forget) {
        const absl::Status status = folder_->Remove(job);
        if (!status.ok()) LogWarning("{}", std::string(status.message()));
      }
      if (start) SayEnded(RunGeneration(*start));
    }
  }

  bool CanForget() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !forget_.empty() && persist_.empty() && !persisting_;
  }

  void SayEnded(GenerationEnded ended) {
    AgentMessage message;
    *message.mutable_ended() = std::move(ended);
    Say(std::move(message));
  }

  GenerationEnded RunGeneration(const StartGeneration& start) {
    const std::string name = fmt::format("g{}", start.generation());
    MpiRunResult result;
    const absl::StatusOr<std::string> arenas = folder_->Make(start.job());
    const absl::StatusOr<std::string> folder = folder_->Make(name);
    if (!arenas.ok() || !folder.ok()) {
      result = {1, std::string((arenas.ok() ? folder.status() : arenas.status()).message())};
    } else if (start.head()) {
      result = RunHead(start, *folder);
    } else {
      WaitForKill();
    }
    if (!result.clean) LogError("processes of generation {} cannot be killed", start.generation());
    const absl::Status removed = folder_->Remove(name);
    if (!removed.ok()) LogWarning("{}", std::string(removed.message()));
    MutexLock lock(&mutex_);
    running_.reset();
    killed_ = 0;
    return Ended(start.job(), start.generation(), result);
  }

  MpiRunResult RunHead(const StartGeneration& start, const std::string& folder) {
    MpiRunOptions options;
    options.start = start;
    options.coordinator = options_.coordinator;
    options.mpirun = options_.mpirun;
    options.worker = options_.worker;
    options.folder = folder;
    options.run_id = fmt::format("{}-{}", incarnation_, start.generation());
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
  void WaitForKill() {
    MutexLock lock(&mutex_);
    while (killed_ == 0 && !stopping_) changed_.Wait(&mutex_);
  }

  // ---- Snapshots.
  // --------------------------------------------------------------------------------

  void PersistSnapshots() {
    while (true) {
      PersistSnapshot persist;
      {
        MutexLock lock(&mutex_);
        persisting_ = false;
        changed_.NotifyAll();
        while (persist_.empty() && !stopping_) changed_.Wait(&mutex_);
        if (stopping_) return;
        persist = std::move(persist_.front());
        persist_.pop_front();
        persisting_ = true;
      }
      for (const RankArena& arena : persist.arenas()) {
        AgentMessage message;
        *message.mutable_persisted() = PersistRank(persist, arena);
        Say(std::move(message));
      }
    }
  }

  ShardsPersisted PersistRank(const PersistSnapshot& persist, const RankArena& arena) const {
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

  absl::StatusOr<ShardsPersisted> WriteRank(const PersistSnapshot& persist,
                                            const RankArena& arena) const {
    if (arena.path().rfind(folder_->path() + "/", 0) != 0 ||
        arena.path().find("/../") != std::string::npos) {
      return absl::InvalidArgumentError(
          fmt::format("{} is not in this agent's folder {}", arena.path(), folder_->path()));
    }
    const auto reader = SnapshotReader::Open(arena.path());
    if (!reader.ok()) return reader.status();
    const SnapshotIndex& index = (*reader)->index();
    if (index.job() != persist.job() || index.generation() != persist.generation() ||
        index.rank() != arena.rank()) {
      return absl::FailedPreconditionError(
          fmt::format("stale snapshot in {}: rank {} of generation {} of job {}", arena.path(),
                      index.rank(), index.generation(), index.job()));
    }
    const auto staging = FileSystem::System().OpenFolder(persist.staging());
    if (!staging.ok()) return staging.status();
    return PersistShards(**reader, persist.step(), staging->get());
  }

  const AgentOptions options_;
  const std::string incarnation_;
  const std::unique_ptr<AgentFolder> folder_;
  const std::unique_ptr<Coordinator::Stub> stub_;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::optional<StartGeneration> running_ ABSL_GUARDED_BY(mutex_);
  bool starting_ ABSL_GUARDED_BY(mutex_) = false;
  int killed_ ABSL_GUARDED_BY(mutex_) = 0;  // 1: politely, 2: at once
  MpiRun* run_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::vector<GenerationEnded> ended_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> forget_ ABSL_GUARDED_BY(mutex_);
  std::deque<PersistSnapshot> persist_ ABSL_GUARDED_BY(mutex_);
  bool persisting_ ABSL_GUARDED_BY(mutex_) = false;

  Mutex write_mutex_;  // one Write at a time; never taken together with mutex_
  Session* session_ ABSL_GUARDED_BY(write_mutex_) = nullptr;

  std::thread session_thread_;
  std::thread renewal_thread_;
  std::thread generation_thread_;
  std::thread persist_thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Agent>> Agent::Start(AgentOptions options) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  absl::StatusOr<std::unique_ptr<AgentFolder>> folder = AgentFolder::Create(options.shared_memory);
  if (!folder.ok()) return folder.status();
  return std::make_unique<RunningAgent>(std::move(options), *std::move(folder));
}

}  // namespace moesaic
