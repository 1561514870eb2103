// ClusterModel: agents. They obey, renew their leases, keep snapshots, and register again whenever
// their stream breaks. Of a stream all is lost or nothing.
#include <algorithm>

#include "tests/scheduler/state/model/cluster_model.h"
#include "tests/scheduler/state/model/model_log.h"

namespace moesaic {
namespace {

constexpr absl::Duration kRenewal = absl::Seconds(1);

std::string FolderOf(const std::string& node, const std::string& job) {
  return "/dev/shm/" + node + "/" + job + "/";
}

}  // namespace

bool ClusterModel::Frozen(const Agent& agent) const {
  return timeline_.now() < std::max(agent.stopped_until, agent.cut_until);
}

void ClusterModel::StartAgent(Agent* agent) {
  if (agent->lives()) return;
  ++agent->life;
  Log("{} starts", agent->incarnation());
  agent->stopped_until = absl::InfinitePast();
  agent->running = 0;
  agent->running_job.clear();
  agent->ending = false;
  agent->ended.clear();
  agent->memory.clear();
  agent->preempted.clear();
  agent->out_of_contact = timeline_.now();
  AgentDo(agent, chance_.Ms(1, 300), [this, agent] { Connect(agent); });
  RenewForEver(agent, agent->life);
}

// Its ranks die with it, and so does what it remembers.
void ClusterModel::KillAgent(Agent* agent) {
  if (!agent->lives()) return;
  Log("{} dies", agent->incarnation());
  BreakStream(agent, true);
  ++agent->life;
  agent->memory.clear();
  const GenerationPtr generation = Find(agent->running_job, agent->running);
  agent->running = 0;
  if (generation != nullptr) Break(generation, 205, std::nullopt);
}

void ClusterModel::AgentDo(Agent* agent, absl::Duration delay, std::function<void()> act) {
  timeline_.After(delay, [this, agent, life = agent->life, act = std::move(act)] {
    if (agent->life != life) return;
    if (timeline_.now() < agent->stopped_until) {
      AgentDo(agent, agent->stopped_until - timeline_.now() + absl::Milliseconds(1), act);
      return;
    }
    act();
  });
}

void ClusterModel::Connect(Agent* agent) {
  if (agent->stream != 0) return;
  if (Frozen(*agent) || state_ == nullptr) {
    AgentDo(agent, chance_.Ms(200, 1000), [this, agent] { Connect(agent); });
    return;
  }
  AgentJoined joined{agent->name, agent->incarnation(), {}};
  AgentRegistration& registration = joined.registration;
  registration.set_slots(1);
  registration.set_cores(1);
  registration.set_host(agent->name);
  registration.set_address(agent->name + ":1");
  registration.set_arena_dir("/dev/shm/" + agent->name);
  if (agent->running != 0) {
    registration.set_running_job(agent->running_job);
    registration.set_running_generation(agent->running);
  }
  for (const auto& [path, held] : agent->memory) *registration.add_held() = held.held;
  for (const GenerationEnded& ended : agent->ended) *registration.add_ended() = ended;
  const uint64_t stream = next_name_++;
  agent->stream = stream;
  agent->inbox = agent->outbox = timeline_.now();
  agent->out_of_contact = absl::InfiniteFuture();
  const auto before = registered_.find(agent->name) == registered_.end()
                          ? std::nullopt
                          : std::optional(registered_[agent->name]);
  registered_[agent->name] = {agent->incarnation(), timeline_.now()};
  Log("{} registers, running {} {}, holding {}", agent->incarnation(), agent->running_job,
      agent->running, registration.held_size());
  const absl::Status status = Handle(joined);
  if (status.ok()) {
    const size_t said = static_cast<size_t>(registration.ended_size());
    agent->ended.erase(agent->ended.begin(),
                       agent->ended.begin() + static_cast<std::ptrdiff_t>(
                                                  std::min(said, agent->ended.size())));
    if (!agent->preempted.empty()) {
      Say(agent, [agent] { return AgentPreempted{agent->name, agent->incarnation(), "SIGTERM"}; });
    }
    return;
  }
  if (state_ != nullptr && before) registered_[agent->name] = *before;
  if (state_ != nullptr && !before) registered_.erase(agent->name);
  agent->stream = 0;
  if (agent->out_of_contact == absl::InfiniteFuture()) agent->out_of_contact = timeline_.now();
  AgentDo(agent, chance_.Ms(300, 1000), [this, agent] { Connect(agent); });
}

// `heard`: the coordinator sees it close.
void ClusterModel::BreakStream(Agent* agent, bool heard) {
  if (agent->stream == 0) return;
  const std::string incarnation = agent->incarnation();
  const uint64_t stream = agent->stream;
  agent->stream = 0;
  agent->out_of_contact = timeline_.now();
  if (heard && !Frozen(*agent)) {
    timeline_.After(chance_.Ms(1, 200), [this, agent, incarnation, stream] {
      // The edge knows when another stream of the same agent has taken over.
      if (agent->stream > stream && agent->incarnation() == incarnation) return;
      if (state_ == nullptr) return;
      const auto before = registered_.extract(agent->name);
      const absl::Status lost =
          Handle(AgentLost{agent->name, incarnation, "its connection closed"});
      if (absl::IsFailedPrecondition(lost) && !before.empty()) {
        registered_[agent->name] = before.mapped();
      }
    });
  }
  AgentDo(agent, chance_.OneIn(5) ? chance_.Ms(1000, 6000) : chance_.Ms(50, 1000),
          [this, agent] { Connect(agent); });
}

void ClusterModel::RenewForEver(Agent* agent, int life) {
  AgentDo(agent, kRenewal, [this, agent, life] {
    if (agent->life != life) return;
    const GenerationPtr generation = Find(agent->running_job, agent->running);
    if (agent->stream != 0 && !Frozen(*agent)) {
      Say(agent, [agent] { return AgentRenewed{agent->name, agent->incarnation()}; },
          [this, agent](absl::Status status) {
            if (status.ok()) {
              if (Registered(agent->name)) registered_[agent->name].renewed = timeline_.now();
            } else if (absl::IsFailedPrecondition(status)) {
              BreakStream(agent, false);
            }
          });
    } else if (generation != nullptr && agent->stream == 0 &&
               timeline_.now() > agent->out_of_contact + absl::Seconds(generation->orphan_grace)) {
      Log("{} ends its orphan", agent->incarnation());
      EndGenerationAt(agent, chance_.Ms(1, 100));
    }
    RenewForEver(agent, life);
  });
}

void ClusterModel::Say(Agent* agent, std::function<Event()> event,
                       std::function<void(absl::Status)> answer) {
  if (agent->stream == 0) return;
  agent->outbox = std::max({agent->outbox, timeline_.now() + chance_.Ms(1, 30), agent->cut_until});
  timeline_.At(agent->outbox, [this, agent, stream = agent->stream, event = std::move(event),
                               answer = std::move(answer)] {
    if (agent->stream != stream) return;
    const absl::Status status = Handle(event(), true);
    if (answer && agent->stream == stream) answer(status);
  });
}

void ClusterModel::Deliver(Agent* agent, const std::shared_ptr<const AgentCommand>& command) {
  if (agent->stream == 0) return;
  agent->inbox = std::max({agent->inbox, timeline_.now() + chance_.Ms(1, 30), agent->stopped_until,
                           agent->cut_until});
  timeline_.At(agent->inbox, [this, agent, stream = agent->stream, command] {
    if (agent->stream != stream || !agent->lives()) return;
    if (Frozen(*agent)) {
      Deliver(agent, command);
    } else {
      Obey(agent, *command);
    }
  });
}

void ClusterModel::Obey(Agent* agent, const AgentCommand& command) {
  switch (command.kind_case()) {
    case AgentCommand::kStart:
      StartGenerationAt(agent, command.start());
      break;
    case AgentCommand::kKill:
      if (agent->running == command.kill().generation() &&
          agent->running_job == command.kill().job()) {
        EndGenerationAt(agent, command.kill().now() ? chance_.Ms(10, 200) : chance_.Ms(10, 1200));
      }
      break;
    case AgentCommand::kPersist:
      AgentDo(agent, chance_.OneIn(8) ? chance_.Ms(500, 4000) : chance_.Ms(5, 200),
              [this, agent, persist = command.persist()] { Persist(agent, persist); });
      break;
    case AgentCommand::kReplicate:
      AgentDo(agent, chance_.OneIn(8) ? chance_.Ms(500, 4000) : chance_.Ms(5, 200),
              [this, agent, replicate = command.replicate()] { Replicate(agent, replicate); });
      break;
    case AgentCommand::kKeep:
      Keep(agent, command.keep());
      break;
    case AgentCommand::kForget:
      std::erase_if(agent->memory, [&](const auto& entry) {
        return entry.second.held.job() == command.forget().job();
      });
      break;
    case AgentCommand::kLeave:
      Log("{} leaves", agent->incarnation());
      KillAgent(agent);
      break;
    default:
      break;
  }
}

void ClusterModel::Persist(Agent* agent, const PersistSnapshot& persist) {
  const JobFacts& facts = jobs_[persist.job()];
  for (const RankArena& arena : persist.arenas()) {
    ShardsPersisted report;
    report.set_job(persist.job());
    report.set_generation(persist.generation());
    report.set_step(persist.step());
    report.set_staging(persist.staging());
    report.set_rank(arena.rank());
    const auto held = agent->memory.find(arena.path());
    if (held == agent->memory.end() || held->second.held.generation() != persist.generation() ||
        held->second.held.step() != persist.step() || held->second.held.rank() != arena.rank()) {
      report.set_error("there is no such snapshot");
    } else if (!facts.staging.contains(persist.staging())) {
      report.set_error("there is no such staging folder");
    } else if (disk_full_ && chance_.OneIn(2)) {
      report.set_error("no space left on device");
    } else {
      report.mutable_state()->set_samples(held->second.content);
    }
    Say(agent, [agent, report] {
      return ShardsReported{agent->name, agent->incarnation(), report};
    });
  }
}

void ClusterModel::Replicate(Agent* agent, const ReplicateSnapshot& replicate) {
  SnapshotReplicated report;
  report.set_job(replicate.job());
  report.set_generation(replicate.generation());
  report.set_step(replicate.step());
  const Agent& peer = agents_[replicate.from().substr(0, replicate.from().find(':'))];
  const std::string folder = FolderOf(agent->name, replicate.job()) + "copies/";
  std::vector<Held> copies;
  for (const uint32_t rank : replicate.ranks()) {
    const Held* found = nullptr;
    for (const auto& [path, held] : peer.memory) {
      if (held.held.job() == replicate.job() && held.held.rank() == rank &&
          held.held.step() == replicate.step() &&
          held.held.generation() == replicate.generation()) {
        found = &held;
      }
    }
    if (found == nullptr || !peer.lives() || Frozen(peer) || Frozen(*agent)) {
      report.set_error("the peer does not have it");
      break;
    }
    Held copy = *found;
    copy.held.set_copy(true);
    copy.held.set_path(folder + "g" + std::to_string(replicate.generation()) + "-r" +
                       std::to_string(rank) + "-s" + std::to_string(replicate.step()));
    copies.push_back(std::move(copy));
  }
  if (report.error().empty()) {
    for (const Held& copy : copies) {
      agent->memory[copy.held.path()] = copy;
      *report.add_copies() = copy.held;
    }
  }
  Say(agent, [agent, report] {
    return CopiesReported{agent->name, agent->incarnation(), report};
  });
}

void ClusterModel::Keep(Agent* agent, const KeepSnapshots& keep) {
  const bool runs = agent->running_job == keep.job() && agent->running != 0;
  std::pair<uint64_t, uint64_t> newest;
  for (const auto& kept : keep.kept()) {
    newest = std::max(newest, std::pair<uint64_t, uint64_t>(kept.generation(), kept.step()));
  }
  std::erase_if(agent->memory, [&](const auto& entry) {
    const HeldSnapshot& held = entry.second.held;
    if (held.job() != keep.job()) return false;
    if (runs && held.generation() == agent->running && !held.copy()) return false;
    if (!held.copy() && std::pair<uint64_t, uint64_t>(held.generation(), held.step()) > newest) {
      return false;
    }
    return std::none_of(keep.kept().begin(), keep.kept().end(), [&](const auto& kept) {
      return kept.generation() == held.generation() && kept.step() == held.step();
    });
  });
}

// ---- Generations.
// --------------------------------------------------------------------------------

ClusterModel::GenerationPtr ClusterModel::Find(const std::string& job, uint64_t number) {
  if (number == 0) return nullptr;
  for (const GenerationPtr& generation : generations_) {
    if (generation->number == number && generation->job == job) return generation;
  }
  return nullptr;
}

void ClusterModel::StartGenerationAt(Agent* agent, const class StartGeneration& start) {
  if (agent->running != 0) {
    Fail("M1: " + agent->name + " is told to run two generations");
    return;
  }
  agent->running_job = start.job();
  agent->running = start.generation();
  agent->ending = false;
  GenerationPtr generation = Find(start.job(), start.generation());
  if (generation == nullptr) {
    generation = std::make_shared<Generation>();
    generation->job = start.job();
    generation->number = start.generation();
    generation->token = start.token();
    generation->orphan_grace = start.orphan_grace_seconds();
    for (const HostSlots& host : start.hosts()) generation->hosts.push_back(host.node());
    generations_.push_back(generation);
  }
  generation->started.insert(agent->name);
  if (generation->over) {
    EndGenerationAt(agent, chance_.Ms(1, 100));
  } else if (generation->started.size() == generation->hosts.size()) {
    timeline_.After(chance_.Ms(50, 300), [this, generation] { Launch(generation); });
  }
}

// Nothing of the generation is left on this host once `delay` has passed.
void ClusterModel::EndGenerationAt(Agent* agent, absl::Duration delay) {
  if (agent->ending) return;
  agent->ending = true;
  const GenerationPtr generation = Find(agent->running_job, agent->running);
  AgentDo(agent, delay, [this, agent, generation] {
    if (generation == nullptr || agent->running != generation->number ||
        agent->running_job != generation->job) {
      return;
    }
    if (!generation->over) Break(generation, 137, std::nullopt);
    GenerationEnded ended;
    ended.set_job(generation->job);
    ended.set_generation(generation->number);
    ended.set_exit_code(generation->exit_code);
    if (agent->name == generation->hosts[0] && generation->failed_rank) {
      ended.set_failed_rank(*generation->failed_rank);
    }
    agent->running = 0;
    agent->ending = false;
    agent->ended.push_back(ended);
    Log("{}: g{} is over there: {}", agent->incarnation(), ended.generation(), ended.exit_code());
    Say(agent, [agent, ended] {
      return GenerationEnd{agent->name, agent->incarnation(), ended};
    });
  });
}

}  // namespace moesaic
