// ClusterModel: mpirun and its ranks, as trainer/loop/worker.cc and its client of the coordinator.
#include <algorithm>

#include "tests/scheduler/state/model/cluster_model.h"
#include "tests/scheduler/state/model/model_log.h"

namespace moesaic {
namespace {

// As a rank stores it. Nodes have one rank each.
StoredPlacement PlacementOf(const RankTable& table) {
  StoredPlacement stored;
  stored.set_ranks(static_cast<uint32_t>(table.ranks_size()));
  stored.set_ranks_per_node(1);
  int degree = 1;
  for (const RankEntry& rank : table.ranks()) {
    degree = std::max(degree, static_cast<int>(rank.expert()) + 1);
  }
  stored.set_expert_size(static_cast<uint32_t>(degree));
  for (const ExpertHolders& holders : table.placement()) {
    stored.add_holders(static_cast<uint32_t>(holders.ranks_size()));
    for (const auto rank : holders.ranks()) stored.add_holders(static_cast<uint32_t>(rank));
  }
  return stored;
}

}  // namespace

WorkerIdentity ClusterModel::Identity(const Generation& generation, uint32_t rank) const {
  WorkerIdentity worker;
  worker.set_job(generation.job);
  worker.set_generation(generation.number);
  worker.set_rank(rank);
  worker.set_incarnation(generation.ranks[rank].incarnation);
  worker.set_token(generation.token);
  return worker;
}

void ClusterModel::Launch(const GenerationPtr& generation) {
  if (generation->over) return;
  generation->ranks.resize(generation->hosts.size());
  for (uint32_t rank = 0; rank < generation->ranks.size(); ++rank) {
    Rank& launched = generation->ranks[rank];
    launched.agent = generation->hosts[rank];
    launched.incarnation = "w" + std::to_string(next_name_++);
    launched.alive = true;
    launched.control.set_generation(generation->number);
    AskTable(generation, rank);
  }
}

// mpirun ends all when one ends: every host's agent sees its processes go.
void ClusterModel::Break(const GenerationPtr& generation, int code, std::optional<uint32_t> rank) {
  if (generation->over) return;
  Log("  {} g{} ends with {}", generation->job, generation->number, code);
  generation->over = true;
  generation->exit_code = code;
  generation->failed_rank = rank;
  for (Rank& each : generation->ranks) each.alive = false;
  for (const std::string& host : generation->hosts) {
    Agent& agent = agents_[host];
    if (agent.running_job == generation->job && agent.running == generation->number) {
      EndGenerationAt(&agent, host == generation->hosts[0] ? chance_.Ms(1, 300)
                                                           : chance_.Ms(1, 1200));
    }
  }
}

// Tried again while the coordinator is away.
void ClusterModel::Call(const GenerationPtr& generation, uint32_t rank,
                        std::function<Event()> event, std::function<void(absl::Status)> answer) {
  timeline_.After(chance_.Ms(1, 30), [this, generation, rank, event, answer] {
    Rank& caller = generation->ranks[rank];
    if (!caller.alive) return;
    const bool away = state_ == nullptr || timeline_.now() < agents_[caller.agent].cut_until ||
                      timeline_.now() < caller.stuck_until;
    const absl::Status status = away ? absl::UnavailableError("away") : Handle(event(), true);
    if (absl::IsUnavailable(status)) {
      timeline_.After(chance_.Ms(200, 500), [this, generation, rank, event, answer] {
        Call(generation, rank, event, answer);
      });
      return;
    }
    if (caller.alive) answer(status);
  });
}

void ClusterModel::AskTable(const GenerationPtr& generation, uint32_t rank) {
  Call(
      generation, rank,
      [this, generation, rank] { return RankTableAsked{Identity(*generation, rank)}; },
      [this, generation, rank](absl::Status status) {
        if (!status.ok()) {
          Break(generation, kExitStaleGeneration, rank);
          return;
        }
        const RankTable& table = *state_->rank_table(generation->job);
        Rank& asker = generation->ranks[rank];
        asker.arena = table.ranks(static_cast<int>(rank)).arena_path();
        if (generation->restore == nullptr) {
          generation->restore = std::make_shared<RestoreSources>(table.restore());
          generation->placement = PlacementOf(table);
          generation->last_step = table.spec().train().steps();
          generation->every = table.spec().checkpoint().every_steps();
          generation->memory_every = table.spec().checkpoint().memory_every_steps();
        }
        if (asker.agent != table.ranks(static_cast<int>(rank)).node()) Fail("a rank elsewhere");
        Report(generation, rank, "restore");
        timeline_.After(chance_.Ms(10, 300),
                        [this, generation, rank] { Restore(generation, rank); });
      });
}

void ClusterModel::Restore(const GenerationPtr& generation, uint32_t rank) {
  if (!generation->ranks[rank].alive) return;
  const RestoreSources& from = *generation->restore;
  std::map<uint32_t, uint64_t> parts;
  uint32_t ranks = 0;
  for (const SnapshotSource& source : from.snapshots()) {
    ranks = source.snapshot().ranks();
    const Agent& agent = agents_[source.node()];
    const auto held = agent.memory.find(source.snapshot().path());
    if (agent.lives() && !Frozen(agent) && held != agent.memory.end() &&
        held->second.held.generation() == source.snapshot().generation() &&
        held->second.held.step() == from.step()) {
      parts[source.snapshot().rank()] = held->second.content;
    }
  }
  uint64_t content = 0;
  if (ranks > 0 && parts.size() == ranks) {
    content = parts.begin()->second;
    for (const auto& [part, its] : parts) {
      if (its != content) Fail("a rank restores from several contents");
    }
  } else if (from.step() > 0) {
    const auto& disk = jobs_[generation->job].disk;
    const auto stored = disk.find(from.step());
    if (from.path().empty() || stored == disk.end()) {
      Break(generation, kExitSnapshotLost, rank);
      return;
    }
    if (stored->second.damaged) {
      Break(generation, kExitCheckpointInvalid, rank);
      return;
    }
    content = stored->second.content;
  }
  if (generation->step != 0 && generation->content != content) {
    Fail("ranks restore from several contents");
  }
  generation->step = from.step();
  generation->content = content;
  AskReady(generation, rank);
}

void ClusterModel::AskReady(const GenerationPtr& generation, uint32_t rank) {
  Call(
      generation, rank,
      [this, generation, rank] {
        RankReady ready;
        *ready.request.mutable_worker() = Identity(*generation, rank);
        ready.request.set_restored_step(generation->step);
        return ready;
      },
      [this, generation, rank](absl::Status status) {
        generation->ranks[rank].asked = status.ok();
        if (!status.ok()) Break(generation, kExitStaleGeneration, rank);
      });
}

// ---- Training.
// -----------------------------------------------------------------------------------

// Whether all ranks can take a step together.
bool ClusterModel::CanStep(const Generation& generation) const {
  return std::all_of(generation.ranks.begin(), generation.ranks.end(), [&](const Rank& rank) {
    const bool cut = generation.ranks.size() > 1 &&
                     timeline_.now() < agents_.at(rank.agent).cut_until;
    return rank.alive && !cut && timeline_.now() >= rank.stuck_until;
  });
}

void ClusterModel::Train(const GenerationPtr& generation) {
  if (generation->over) return;
  for (uint32_t rank = 0; rank < generation->ranks.size(); ++rank) {
    if (generation->ranks[rank].control.abort()) {
      Break(generation, kExitStaleGeneration, rank);
      return;
    }
  }
  if (!CanStep(*generation)) {
    timeline_.After(absl::Milliseconds(400), [this, generation] { Train(generation); });
    return;
  }
  // The control word as rank 0 knows it, spread with the step.
  const bool stop = generation->ranks[0].control.stop();
  const bool hold = NoBuffer(generation.get(), 0);
  const uint64_t step = ++generation->step;
  contents_.push_back({generation->content, step});
  generation->content = contents_.size() - 1;
  const bool scheduled = step % generation->memory_every == 0 || step % generation->every == 0;
  const bool last = step == generation->last_step;
  generation->stopping = stop || last;
  if (last || stop || (scheduled && !hold)) {
    generation->to_copy = step;
    for (uint32_t rank = 0; rank < generation->ranks.size(); ++rank) {
      generation->copying.insert(rank);
    }
  }
  for (uint32_t rank = 0; rank < generation->ranks.size(); ++rank) {
    if (generation->stopping || chance_.OneIn(rank == 0 ? 2 : 3)) Report(generation, rank, "step");
  }
  CopyAll(generation);
}

// Copies where a buffer is free; goes on once all have copied.
void ClusterModel::CopyAll(const GenerationPtr& generation) {
  if (generation->over) return;
  for (auto rank = generation->copying.begin(); rank != generation->copying.end();) {
    if (timeline_.now() >= generation->ranks[*rank].stuck_until && Copy(generation.get(), *rank)) {
      if (generation->ranks[*rank].reports.size() == 1) SayReports(generation, *rank);
      rank = generation->copying.erase(rank);
    } else {
      ++rank;
    }
  }
  if (!generation->copying.empty()) {
    for (const Rank& rank : generation->ranks) {
      if (rank.control.abort()) {
        Break(generation, kExitStaleGeneration, 0);
        return;
      }
    }
    timeline_.After(absl::Milliseconds(150), [this, generation] { CopyAll(generation); });
    return;
  }
  generation->to_copy.reset();
  if (generation->stopping) {
    MaybeFinish(generation);
  } else {
    timeline_.After(chance_.Ms(100, 350), [this, generation] { Train(generation); });
  }
}

void ClusterModel::Settle(Generation* generation, uint32_t rank) {
  Rank& settled = generation->ranks[rank];
  const Control& control = settled.control;
  const uint64_t until = std::max(control.memory_step(), control.aborted_snapshot_step());
  for (int buffer : {0, 1}) {
    std::optional<uint64_t>& step = settled.buffers[buffer];
    if (!step || *step > until) continue;
    const auto& kept = control.kept_steps();
    if (std::count(kept.begin(), kept.end(), *step) > 0) continue;
    agents_[settled.agent].memory.erase(settled.arena + "." + std::to_string(buffer));
    step.reset();
  }
}

// One expert takes most; which one changes from time to time.
void ClusterModel::AddLoad(const Generation& generation, TrainingState* state) {
  const ModelSpec& model = jobs_[generation.job].spec.model();
  for (uint32_t layer = 0; layer < model.layers(); ++layer) {
    LayerLoad* load = state->add_expert_load();
    load->set_layer(layer);
    for (uint32_t expert = 0; expert < model.moe().experts(); ++expert) load->add_tokens(1);
    const auto hot = static_cast<int>((state->step() / 6) % model.moe().experts());
    load->set_tokens(hot, 4);
    load->set_tokens((hot + 1) % load->tokens_size(), 4);
  }
}

bool ClusterModel::NoBuffer(Generation* generation, uint32_t rank) {
  Settle(generation, rank);
  return generation->ranks[rank].buffers[0] && generation->ranks[rank].buffers[1];
}

bool ClusterModel::Copy(Generation* generation, uint32_t rank) {
  if (NoBuffer(generation, rank)) return false;
  Rank& copier = generation->ranks[rank];
  const uint32_t buffer = copier.buffers[0] ? 1 : 0;
  copier.buffers[buffer] = generation->to_copy;
  SnapshotReport report;
  *report.mutable_worker() = Identity(*generation, rank);
  report.set_step(*generation->to_copy);
  report.set_buffer(buffer);
  if (rank == 0) {
    report.mutable_state()->set_step(report.step());
    report.mutable_state()->set_samples(generation->content);
    *report.mutable_state()->mutable_placement() = generation->placement;
    AddLoad(*generation, report.mutable_state());
  }
  Held held;
  held.content = generation->content;
  held.held.set_job(generation->job);
  held.held.set_generation(generation->number);
  held.held.set_step(report.step());
  held.held.set_rank(rank);
  held.held.set_ranks(static_cast<uint32_t>(generation->ranks.size()));
  held.held.set_path(copier.arena + "." + std::to_string(buffer));
  if (rank == 0) *held.held.mutable_state() = report.state();
  agents_[copier.agent].memory[held.held.path()] = std::move(held);
  copier.reports.push_back(report);
  copier.newest = std::move(report);
  return true;
}

// ---- What ranks say and hear.
// ---------------------------------------------------------------------

void ClusterModel::Report(const GenerationPtr& generation, uint32_t rank,
                          const std::string& phase) {
  if (state_ == nullptr) return;  // the newest is said again once it is back
  timeline_.After(chance_.Ms(1, 20), [this, generation, rank, phase, step = generation->step] {
    const Rank& reporter = generation->ranks[rank];
    if (!reporter.alive || state_ == nullptr ||
        timeline_.now() < agents_[reporter.agent].cut_until) {
      return;
    }
    StepReported event;
    *event.report.mutable_worker() = Identity(*generation, rank);
    event.report.set_step(step);
    event.report.set_phase(phase);
    if (rank == 0 && phase == "step") {
      event.report.mutable_metrics()->set_step(step);
      event.report.mutable_metrics()->set_generation(generation->number);
      event.report.mutable_metrics()->set_seconds(10);  // so that a pause is worth a better balance
      event.report.mutable_metrics()->set_tokens(10);
    }
    const absl::Status status = Handle(event, true);
    if (absl::IsFailedPrecondition(status)) generation->ranks[rank].control.set_abort(true);
    // A stream begins with the control word of the moment.
    if (status.ok() && phase != "step" && state_ != nullptr) {
      TakeControl(generation, rank, *state_->control(generation->job));
    }
  });
}

// One at a time, in order.
void ClusterModel::SayReports(const GenerationPtr& generation, uint32_t rank) {
  Call(
      generation, rank,
      [generation, rank] { return SnapshotReported{generation->ranks[rank].reports.front()}; },
      [this, generation, rank](absl::Status status) {
        Rank& sayer = generation->ranks[rank];
        if (absl::IsFailedPrecondition(status)) sayer.control.set_abort(true);
        sayer.reports.pop_front();
        if (sayer.reports.empty()) {
          MaybeFinish(generation);
        } else {
          SayReports(generation, rank);
        }
      });
}

void ClusterModel::TakeControl(const GenerationPtr& generation, uint32_t rank,
                               const Control& control) {
  Rank& taker = generation->ranks[rank];
  if (!taker.alive || timeline_.now() < agents_[taker.agent].cut_until) return;
  const bool abort = taker.control.abort();
  taker.control = control;
  if (abort) taker.control.set_abort(true);
}

// The coordinator is back: every rank's stream opens again, and what may have been lost is said.
void ClusterModel::Reconnect(const GenerationPtr& generation) {
  if (generation->over) return;
  for (uint32_t rank = 0; rank < generation->ranks.size(); ++rank) {
    if (!generation->ranks[rank].alive) continue;
    if (generation->ranks[rank].asked && !generation->trains) {
      generation->ranks[rank].asked = false;
      AskReady(generation, rank);
    }
    Call(
        generation, rank,
        [this, generation, rank] {
          StepReported event;
          *event.report.mutable_worker() = Identity(*generation, rank);
          event.report.set_step(generation->step);
          event.report.set_phase(generation->trains ? "step" : "restore");
          return event;
        },
        [this, generation, rank](absl::Status status) {
          Rank& back = generation->ranks[rank];
          if (absl::IsFailedPrecondition(status)) back.control.set_abort(true);
          if (!status.ok() || state_ == nullptr) return;
          const Control& control = *state_->control(generation->job);
          TakeControl(generation, rank, control);
          if (back.newest && back.reports.empty() && back.newest->step() > control.memory_step() &&
              back.newest->step() > control.committed_step() &&
              back.newest->step() > control.aborted_snapshot_step()) {
            back.reports.push_back(*back.newest);
            SayReports(generation, rank);
          }
        });
  }
}

// Ranks exit once all that they had to say is heard.
void ClusterModel::MaybeFinish(const GenerationPtr& generation) {
  if (generation->over || !generation->stopping || generation->to_copy) return;
  const bool said = std::all_of(generation->ranks.begin(), generation->ranks.end(),
                                [](const Rank& rank) { return rank.reports.empty(); });
  if (!said) return;
  Break(generation, generation->step == generation->last_step ? 0 : kExitPlannedRestart,
        std::nullopt);
}

}  // namespace moesaic
