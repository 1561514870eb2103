#include "launcher/agent/agent.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <utility>

#include "base/log.h"
#include "launcher/agent/agent_folder.h"
#include "launcher/agent/agent_snapshots.h"
#include "launcher/agent/coordinator_session.h"
#include "launcher/agent/generation_runner.h"
#include "scheduler/client/channel.h"
#include "scheduler/client/random_token.h"

namespace moesaic {
namespace {

uint64_t HostMemory() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

class RunningAgent : public Agent, private SessionOwner {
 public:
  RunningAgent(AgentOptions options, std::unique_ptr<AgentFolder> folder)
      : options_(std::move(options)),
        folder_(std::move(folder)),
        session_({.agent = options_.name,
                  .incarnation = RandomToken(),
                  .channel = OpenCoordinatorChannel(options_.coordinator, options_.tls)},
                 this),
        snapshots_(folder_.get(), [this](AgentMessage message) { Say(std::move(message)); }),
        generations_({.coordinator = options_.coordinator,
                      .worker = options_.worker,
                      .mpirun = options_.mpirun,
                      .slots = options_.slots,
                      .environment = options_.environment},
                     folder_.get(), &snapshots_,
                     [this](AgentMessage message) { Say(std::move(message)); }) {
    session_.Open();
  }

  ~RunningAgent() override { session_.Close(); }

 private:
  void Say(AgentMessage message) { session_.Say(std::move(message)); }

  AgentRegistration Registration() override {
    AgentRegistration registration;
    registration.set_slots(options_.slots);
    registration.set_cores(options_.cores);
    registration.set_memory_bytes(HostMemory());
    registration.set_host(options_.host);
    registration.set_version(options_.version);
    registration.set_arena_dir(folder_->path());
    if (const auto running = generations_.Running()) {
      registration.set_running_job(running->job());
      registration.set_running_generation(running->generation());
    }
    return registration;
  }

  void Obey(const AgentCommand& command) override {
    switch (command.kind_case()) {
      case AgentCommand::kStart: generations_.Start(command.start()); break;
      case AgentCommand::kKill: generations_.Kill(command.kill()); break;
      case AgentCommand::kPersist: snapshots_.Persist(command.persist()); break;
      case AgentCommand::kForget: snapshots_.Forget(command.forget()); break;
      case AgentCommand::kWelcome:
        LogDebug("agent {} is registered", options_.name);
        break;
      case AgentCommand::kReplicate:
      case AgentCommand::kKeep:
      case AgentCommand::kLeave:
      case AgentCommand::kInject:
      case AgentCommand::KIND_NOT_SET: break;
    }
  }

  const AgentOptions options_;
  const std::unique_ptr<AgentFolder> folder_;
  CoordinatorSession session_;  // the others speak through it until they are gone
  AgentSnapshots snapshots_;
  GenerationRunner generations_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Agent>> Agent::Start(AgentOptions options) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  absl::StatusOr<std::unique_ptr<AgentFolder>> folder = AgentFolder::Create(options.shared_memory);
  if (!folder.ok()) return folder.status();
  if (options.worker_tls) options.environment.merge(TlsVariables(*options.worker_tls));
  return std::make_unique<RunningAgent>(std::move(options), *std::move(folder));
}

}  // namespace moesaic
