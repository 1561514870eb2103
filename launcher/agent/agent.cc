#include "launcher/agent/agent.h"

#include <fmt/format.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <optional>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "launcher/agent/agent_folder.h"
#include "launcher/agent/agent_snapshots.h"
#include "launcher/agent/command_check.h"
#include "launcher/agent/coordinator_session.h"
#include "launcher/agent/fault_injection.h"
#include "launcher/agent/generation_runner.h"
#include "launcher/agent/host_network.h"
#include "launcher/agent/peer_service.h"
#include "launcher/agent/rank_environment.h"
#include "scheduler/client/channel.h"
#include "scheduler/client/random_token.h"

namespace moesaic {
namespace {

uint64_t HostMemory() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// The shim runs with the variables of mpirun, which are those of ranks too; so its own have names
// of their own.
std::map<std::string, std::string> ShimVariables(const std::optional<TlsFiles>& files) {
  std::map<std::string, std::string> variables;
  if (!files) return variables;
  for (const auto& [name, value] : TlsVariables(*files)) variables[ShimVariable(name)] = value;
  return variables;
}

GenerationRunnerOptions RunnerOptions(const AgentOptions& options, const std::string& network) {
  std::map<std::string, std::string> environment = options.environment;
  environment.erase(kChaosVariable);
  if (options.allow_chaos) environment.emplace(kChaosVariable, "1");
  return {.host = {.coordinator = options.coordinator,
                   .environment = std::move(environment),
                   .tls = options.worker_tls},
          .worker = options.worker,
          .mpirun = options.mpirun,
          .orted = options.orted,
          .shim = options.shim,
          .network = network,
          .shim_environment = ShimVariables(options.tls_files),
          .slots = options.slots};
}

class RunningAgent : public Agent, private SessionOwner {
 public:
  RunningAgent(AgentOptions options, std::unique_ptr<AgentFolder> folder,
               const std::string& network)
      : options_(std::move(options)),
        folder_(std::move(folder)),
        faults_(options_.allow_chaos),
        session_({.agent = options_.name,
                  .incarnation = RandomToken(),
                  .channel = OpenCoordinatorChannel(options_.coordinator, options_.tls)},
                 this),
        snapshots_(
            folder_.get(),
            [this](const std::string& address) {
              return ConnectToSnapshotPeer(address, options_.tls);
            },
            [this](AgentMessage message) { Say(std::move(message)); }),
        generations_(RunnerOptions(options_, network), folder_.get(), &snapshots_,
                     [this](AgentMessage message) { Say(std::move(message)); }) {}

  ~RunningAgent() override { session_.Close(); }

  absl::Status Open() {
    auto peers = PeerService::Start(
        {.listen = options_.listen, .tls = options_.tls, .insecure = options_.insecure},
        &generations_, &snapshots_.memory());
    if (!peers.ok()) return peers.status();
    peers_ = *std::move(peers);
    const std::string& bound = peers_->address();
    host_ = options_.advertise.empty() ? HostOf(bound) : options_.advertise;
    address_ = fmt::format("{}{}", host_, bound.substr(bound.rfind(':')));
    session_.Open();
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  bool Preempt(const std::string& reason) override {
    {
      MutexLock lock(&mutex_);
      preempted_ = reason;
    }
    return SayPreempted();
  }

  std::string WaitUntilReleased() override {
    MutexLock lock(&mutex_);
    while (!released_) released_changed_.Wait(&mutex_);
    return *released_;
  }

  void Release(const std::string& reason) override {
    MutexLock lock(&mutex_);
    if (!released_) released_ = reason;
    released_changed_.NotifyAll();
  }

 private:
  bool Say(AgentMessage message) {
    if (message.has_ended()) {
      const GenerationEnded& ended = message.ended();
      LogLine(options_.news,
              fmt::format("generation {} of job {} is over{}{}", ended.generation(), ended.job(),
                          ended.first_failure().empty() ? "" : ": ", ended.first_failure()));
    }
    return session_.Say(std::move(message));
  }

  bool SayPreempted() {
    AgentMessage message;
    {
      MutexLock lock(&mutex_);
      if (!preempted_) return true;
      message.mutable_preempted()->set_reason(*preempted_);
    }
    return Say(std::move(message));
  }

  void Persist(const PersistSnapshot& persist) {
    if (!faults_.disk_is_full()) {
      snapshots_.Persist(persist);
      return;
    }
    for (const RankArena& arena : persist.arenas()) {
      AgentMessage message;
      ShardsPersisted* report = message.mutable_persisted();
      report->set_job(persist.job());
      report->set_generation(persist.generation());
      report->set_step(persist.step());
      report->set_staging(persist.staging());
      report->set_rank(arena.rank());
      report->set_error("no space left on device (chaos)");
      Say(std::move(message));
    }
  }

  void Admit(const AdmitReaders& readers) {
    snapshots_.memory().Admit(readers.job(), readers.generation(), readers.token());
  }

  void Inject(const InjectedFault& command) {
    const absl::Status status = faults_.Inject(command, RunFolderMark(folder_->path()));
    LogWarning("chaos: {} of {}: {}", Fault::Kind_Name(command.fault().kind()),
               command.has_rank() ? fmt::format("rank {}", command.rank()) : "this node",
               status.ok() ? "done" : std::string(status.message()));
  }

  AgentRegistration Registration() override {
    AgentRegistration registration;
    registration.set_slots(options_.slots);
    registration.set_cores(options_.cores);
    registration.set_memory_bytes(HostMemory());
    registration.set_host(host_);
    registration.set_address(address_);
    registration.set_version(options_.version);
    registration.set_arena_dir(folder_->path());
    for (HeldSnapshot& held : snapshots_.memory().Held()) {
      *registration.add_held() = std::move(held);
    }
    if (const auto running = generations_.Running()) {
      registration.set_running_job(running->job());
      registration.set_running_generation(running->generation());
    }
    return registration;
  }

  void Obey(const AgentCommand& command) override {
    if (const absl::Status status = CheckCommand(command, folder_->path()); !status.ok()) {
      LogError("a command of the coordinator is refused: {}", std::string(status.message()));
      return;
    }
    switch (command.kind_case()) {
      case AgentCommand::kStart: Start(command.start()); break;
      case AgentCommand::kKill: generations_.Kill(command.kill()); break;
      case AgentCommand::kPersist: Persist(command.persist()); break;
      case AgentCommand::kReplicate: snapshots_.Replicate(command.replicate()); break;
      case AgentCommand::kKeep: Keep(command.keep()); break;
      case AgentCommand::kForget: snapshots_.Forget(command.forget()); break;
      case AgentCommand::kWelcome: TakeWelcome(command.welcome()); break;
      case AgentCommand::kLeave: Release(command.leave().reason()); break;
      case AgentCommand::kAdmit: Admit(command.admit()); break;
      case AgentCommand::kInject: Inject(command.inject()); break;
      case AgentCommand::KIND_NOT_SET: break;
    }
  }

  void TakeWelcome(const AgentWelcome& welcome) {
    LogLine(options_.news,
            fmt::format("node {} is registered with {}{}", options_.name, options_.coordinator,
                        welcome.adopted() ? "; what it runs goes on" : ""));
    {
      MutexLock lock(&mutex_);
      orphan_grace_ = absl::Seconds(welcome.orphan_grace_seconds());
    }
    SayPreempted();
  }

  void OutOfContact(absl::Duration since) override {
    const std::optional<StartGeneration> running = generations_.Running();
    if (!running) return;
    absl::Duration grace = absl::Seconds(running->orphan_grace_seconds());
    {
      MutexLock lock(&mutex_);
      if (grace <= absl::ZeroDuration()) grace = orphan_grace_;
    }
    if (since < grace) return;
    LogWarning("no word of the coordinator for {}: stopping generation {} of job {}",
               absl::FormatDuration(absl::Trunc(since, absl::Seconds(1))), running->generation(),
               running->job());
    KillGeneration kill;
    kill.set_job(running->job());
    kill.set_generation(running->generation());
    kill.set_now(true);
    generations_.Kill(kill);
  }

  // Its ranks may read snapshots here from now on.
  void Start(const StartGeneration& start) {
    snapshots_.memory().Admit(start.job(), start.generation(), start.token());
    LogLine(options_.news,
            fmt::format("generation {} of job {} starts", start.generation(), start.job()));
    generations_.Start(start);
  }

  void Keep(const KeepSnapshots& keep) {
    const auto running = generations_.Running();
    const bool runs = running && running->job() == keep.job();
    snapshots_.memory().Keep(keep, runs ? running->generation() : 0);
  }

  const AgentOptions options_;
  const std::unique_ptr<AgentFolder> folder_;
  FaultInjection faults_;
  std::string host_;     // set by Open, then constant
  std::string address_;  // the same

  Mutex mutex_;
  CondVar released_changed_;
  std::optional<std::string> preempted_ ABSL_GUARDED_BY(mutex_);
  std::optional<std::string> released_ ABSL_GUARDED_BY(mutex_);
  // Before a coordinator said otherwise.
  absl::Duration orphan_grace_ ABSL_GUARDED_BY(mutex_) = absl::Seconds(60);

  CoordinatorSession session_;  // the others speak through it until they are gone
  AgentSnapshots snapshots_;
  GenerationRunner generations_;
  std::unique_ptr<PeerService> peers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Agent>> Agent::Start(AgentOptions options) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  absl::StatusOr<std::unique_ptr<AgentFolder>> folder = AgentFolder::Create(options.shared_memory);
  if (!folder.ok()) return folder.status();
  const std::string host = options.advertise.empty() ? HostOf(options.listen) : options.advertise;
  const absl::StatusOr<std::string> network = SubnetOf(host);
  if (!network.ok()) {
    LogWarning("{}; ranks on several hosts need launch.interface",
               std::string(network.status().message()));
  }
  auto agent =
      std::make_unique<RunningAgent>(std::move(options), *std::move(folder), network.value_or(""));
  if (const absl::Status opened = agent->Open(); !opened.ok()) return opened;
  return agent;
}

}  // namespace moesaic
