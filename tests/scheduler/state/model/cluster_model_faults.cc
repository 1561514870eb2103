// ClusterModel: what goes wrong, what people ask for, and how it all comes to rest.
#include <algorithm>

#include "tests/scheduler/state/cluster_fixture.h"
#include "tests/scheduler/state/model/cluster_model.h"
#include "tests/scheduler/state/model/model_log.h"

namespace moesaic {
namespace {

// The sender of a worker's message; null: not a worker's.
WorkerIdentity* WorkerOf(Event* event) {
  if (auto* ready = std::get_if<RankReady>(event)) return ready->request.mutable_worker();
  if (auto* step = std::get_if<StepReported>(event)) return step->report.mutable_worker();
  if (auto* shot = std::get_if<SnapshotReported>(event)) return shot->report.mutable_worker();
  if (auto* asked = std::get_if<RankTableAsked>(event)) return &asked->worker;
  return nullptr;
}

// (name, incarnation) of an agent's message.
std::optional<std::pair<std::string, std::string>> AgentOf(const Event& event) {
  return std::visit(
      [](const auto& e) -> std::optional<std::pair<std::string, std::string>> {
        if constexpr (requires { e.incarnation; }) return std::pair(e.agent, e.incarnation);
        return std::nullopt;
      },
      event);
}

}  // namespace

void ClusterModel::PlanFaults() {
  const int jobs = chance_.OneIn(5) ? 2 : 1;
  for (int i = 0; i < jobs; ++i) {
    const uint32_t min_nodes = 1 + chance_.Below(jobs == 2 ? 2 : 3);
    JobSpec spec = SmallJob(i == 0 ? "a" : "b", min_nodes, min_nodes + chance_.Below(3), 1);
    spec.mutable_model()->mutable_moe()->set_experts(2 + 2 * chance_.Below(2));
    spec.mutable_train()->set_global_batch(4);
    spec.mutable_train()->set_steps(8 + chance_.Below(17));
    spec.mutable_checkpoint()->set_every_steps(2 + chance_.Below(6));
    spec.mutable_checkpoint()->set_memory_every_steps(1 + chance_.Below(4));
    if (spec.train().steps() % 2 == 0) {
      spec.mutable_elastic()->set_rebalance_ratio(1.05);
      spec.mutable_elastic()->set_rebalance_after(0.3);
    }
    spec.mutable_checkpoint()->set_peer_copies(!chance_.OneIn(4));
    spec.mutable_health()->set_progress_timeout(4);
    spec.mutable_health()->set_start_timeout(8);
    spec.mutable_health()->set_orphan_grace(chance_.OneIn(3) ? 5 : 20);
    const bool budget = chance_.OneIn(10);
    spec.mutable_health()->set_max_failures(budget ? 2 : 1000);
    spec.mutable_health()->set_max_no_progress_generations(budget ? 3 : 1000);
    JobFacts& facts = jobs_[spec.name()];
    facts.spec = spec;
    facts.budget = budget;
    timeline_.After(chance_.Ms(0, 3000), [this, name = spec.name()] { Submit(name); });
  }
  const uint32_t there = 1 + chance_.Below(4);
  for (uint32_t i = 0; i < there; ++i) {
    Agent* agent = &agents_["n" + std::to_string(i + 1)];
    timeline_.After(chance_.Ms(0, 2500), [this, agent] { StartAgent(agent); });
  }
  const uint32_t faults = chance_.Below(9);
  const uint32_t until = 3000 + 2000 * faults;
  for (uint32_t i = 0; i < faults; ++i) {
    timeline_.After(chance_.Ms(2500, until), [this] { Fault(); });
  }
  for (uint32_t i = 0; i < 2; ++i) {
    timeline_.After(chance_.Ms(4000, until + 4000), [this] { ReplayStale(); });
  }
  timeline_.After(absl::Milliseconds(until + 1000), [this] { Calm(); });
}

void ClusterModel::Submit(const std::string& job) {
  if (absl::IsUnavailable(Handle(JobSubmitted{jobs_[job].spec, "auto"}))) {
    timeline_.After(absl::Milliseconds(500), [this, job] { Submit(job); });
  }
}

void ClusterModel::Fault() {
  if (calm_) return;
  Agent* agent = &agents_["n" + std::to_string(1 + chance_.Below(4))];
  switch (chance_.Below(18)) {
    case 0:
    case 1:
      if (agent->lives()) {
        KillAgent(agent);
        timeline_.After(chance_.Ms(200, 9000), [this, agent] { StartAgent(agent); });
      } else {
        StartAgent(agent);
      }
      break;
    case 2:
      agent->stopped_until = timeline_.now() + chance_.Ms(500, 12000);
      Log("{} is stopped", agent->incarnation());
      break;
    case 3:
      agent->cut_until = timeline_.now() + chance_.Ms(500, 12000);
      Log("{} is cut off", agent->incarnation());
      break;
    case 4:
    case 5:
    case 6:
      HurtRank();
      break;
    case 7:
      CrashCoordinator();
      break;
    case 8:
    case 9:
      crash_at_next_ = true;
      break;
    case 10:
      disk_full_ = true;
      Log("the disk is full");
      timeline_.After(chance_.Ms(500, 8000), [this] { disk_full_ = false; });
      break;
    case 11: {
      JobFacts& facts = jobs_["a"];
      if (facts.disk.empty()) break;
      Log("the newest checkpoint is damaged");
      facts.disk.rbegin()->second.damaged = true;
      facts.damaged = true;
      break;
    }
    case 12: {
      ChangeNodeRequest request;
      request.set_node(agent->name);
      request.set_change(static_cast<ChangeNodeRequest::Change>(1 + chance_.Below(3)));
      request.set_deadline_seconds(chance_.OneIn(2) ? 2 : 0);
      Log("a person: {}", request.ShortDebugString());
      Handle(NodeChangeRequested{request}).IgnoreError();
      break;
    }
    case 13:
      if (!agent->lives()) break;
      agent->preempted = "SIGTERM";
      Log("{} is preempted", agent->incarnation());
      Say(agent, [agent] { return AgentPreempted{agent->name, agent->incarnation(), "SIGTERM"}; });
      timeline_.After(chance_.Ms(6000, 12000), [this, agent, life = agent->life] {
        if (agent->life == life) KillAgent(agent);
        StartAgent(agent);
      });
      break;
    case 14: {
      const uint32_t min_nodes = 1 + chance_.Below(3);
      Log("a person: resize from {}", min_nodes);
      Handle(ResizeRequested{"a", min_nodes, min_nodes + chance_.Below(3)}).IgnoreError();
      break;
    }
    case 15: {
      if (!chance_.OneIn(3)) break;
      const bool now = chance_.OneIn(2);
      Log("a person: stop {}", now);
      const absl::Status status = Handle(StopRequested{"a", now});
      jobs_["a"].stopped |= status.ok() || absl::IsUnavailable(status);
      break;
    }
    case 16:
      BreakStream(agent, true);
      break;
    default:
      StartAgent(agent);
      break;
  }
}

void ClusterModel::HurtRank() {
  if (generations_.empty()) return;
  const GenerationPtr generation = generations_.back();
  if (generation->over || generation->ranks.empty()) return;
  const uint32_t rank = chance_.Below(static_cast<uint32_t>(generation->ranks.size()));
  if (chance_.OneIn(3)) {
    generation->ranks[rank].stuck_until = timeline_.now() + chance_.Ms(1000, 15000);
    Log("rank {} of {} g{} hangs", rank, generation->job, generation->number);
    return;
  }
  static constexpr int kCodes[] = {1, 137, 139, kExitWatchdog, kExitSnapshotLost, 0};
  int code = kCodes[chance_.Below(6)];
  if (chance_.OneIn(40)) {
    code = kExitDataCorrupt;
    jobs_[generation->job].fatal = true;
  }
  Break(generation, code, rank);
}

// No more faults, and nodes enough.
void ClusterModel::Calm() {
  calm_ = true;
  Log("calm");
  disk_full_ = false;
  crash_at_next_ = false;
  for (auto& [name, agent] : agents_) {
    agent.stopped_until = std::min(agent.stopped_until, timeline_.now());
    agent.cut_until = std::min(agent.cut_until, timeline_.now());
    StartAgent(&agent);
  }
  for (const GenerationPtr& generation : generations_) {
    for (Rank& rank : generation->ranks) {
      rank.stuck_until = std::min(rank.stuck_until, timeline_.now());
    }
  }
  const uint64_t rounds = 4;
  for (uint64_t i = 0; i < rounds; ++i) {
    timeline_.After(absl::Seconds(5 + 10 * i), [this] {
      for (const auto& [name, agent] : agents_) {
        ChangeNodeRequest request;
        request.set_node(name);
        request.set_change(ChangeNodeRequest::UNCORDON);
        Handle(NodeChangeRequested{request}).IgnoreError();
      }
      ReplayStale();
    });
  }
}

// ---- Messages of the past.
// -------------------------------------------------------------------------

// Whether nobody may say this any more.
bool ClusterModel::IsStale(const Recorded& recorded) const {
  Event event = recorded.event;
  if (const WorkerIdentity* worker = WorkerOf(&event)) {
    const RankTable* table = state_->rank_table(worker->job());
    return table == nullptr || table->generation() != worker->generation();
  }
  if (const auto agent = AgentOf(event)) {
    const Agent& now = agents_.at(agent->first);
    return !Registered(agent->first) || (now.stream != 0 && now.incarnation() != agent->second);
  }
  if (const auto* commit = std::get_if<CommitFinished>(&event)) {
    return commit->status.ok() && recorded.life == coordinator_life_;
  }
  return recorded.life == coordinator_life_;
}

// M2: whatever is stale is refused and changes nothing. A message of today is made stale first.
void ClusterModel::ReplayStale() {
  if (state_ == nullptr || recorded_.empty()) return;
  const std::string before = state_->DebugString();
  for (int i = 0; i < 4; ++i) {
    Recorded recorded = recorded_[chance_.Below(static_cast<uint32_t>(recorded_.size()))];
    WorkerIdentity* worker = WorkerOf(&recorded.event);
    if (!IsStale(recorded)) {
      if (worker == nullptr || recorded.life != coordinator_life_) continue;
      if (chance_.OneIn(2)) {
        worker->set_token(worker->token() + "?");
      } else {
        worker->set_incarnation("another");
      }
    }
    const Outcome outcome = state_->Handle(recorded.event, timeline_.now());
    if (outcome.status.ok()) Fail("M2: a stale message was heard, of kind " +
                                  std::to_string(recorded.event.index()));
    if (!outcome.records.empty() || !outcome.node_records.empty() || !outcome.actions.empty()) {
      Fail("M2: a stale message made something happen: " + std::string(outcome.status.message()));
    }
  }
  if (before != state_->DebugString()) Fail("M2: a stale message changed the state");
}

}  // namespace moesaic
