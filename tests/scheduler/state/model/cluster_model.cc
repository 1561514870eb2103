// ClusterModel: the coordinator around the state, and its keeper of checkpoints.
#include "tests/scheduler/state/model/cluster_model.h"

#include <algorithm>

#include "tests/scheduler/state/cluster_fixture.h"
#include "tests/scheduler/state/model/model_log.h"

namespace moesaic {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(500);
constexpr size_t kRecorded = 24;

bool MayBeSaidAgain(const Event& event) {
  return std::holds_alternative<RankReady>(event) || std::holds_alternative<StepReported>(event) ||
         std::holds_alternative<SnapshotReported>(event) ||
         std::holds_alternative<RankTableAsked>(event) ||
         std::holds_alternative<GenerationEnd>(event) ||
         std::holds_alternative<ShardsReported>(event) ||
         std::holds_alternative<CopiesReported>(event) ||
         std::holds_alternative<AgentRenewed>(event) ||
         std::holds_alternative<CommitFinished>(event) ||
         std::holds_alternative<RestoreChosen>(event);
}

}  // namespace

ClusterModel::ClusterModel(uint64_t seed, bool talks) : chance_(seed), talks_(talks) {
  options_.persist_timeout = absl::Seconds(40);
  options_.draw_token = [this] { return "t" + std::to_string(next_name_++); };
  for (const std::string name : {"n1", "n2", "n3", "n4"}) agents_[name].name = name;
}

std::string ClusterModel::Run() {
  StartCoordinator();
  TickForEver();
  PlanFaults();
  while (broken_.empty() && !(calm_ && Ended()) && timeline_.Step()) {
    ++events_;
    if (calm_ && timeline_.now() > absl::FromUnixSeconds(1000 + 600)) {
      std::string states;
      for (const auto& [name, job] : jobs_) states += records_[name].status().DebugString();
      Fail("not ended long after the last fault:\n" + states);
    }
  }
  if (broken_.empty()) CheckEnd();
  return broken_;
}

// ---- The coordinator.
// ----------------------------------------------------------------------------

void ClusterModel::StartCoordinator() {
  ++coordinator_life_;
  std::vector<JobRecord> records;
  for (const auto& [name, record] : records_) records.push_back(record);
  std::vector<NodeRecord> nodes;
  for (const auto& [name, record] : node_records_) nodes.push_back(record);
  state_ = std::make_unique<ClusterState>(options_, records, timeline_.now(), nodes);
  Log("coordinator {} starts", coordinator_life_);
  for (auto& [name, job] : jobs_) {
    job.staging.clear();  // it sweeps what is half-written
    job.too_few_since = absl::InfiniteFuture();
  }
  for (const GenerationPtr& generation : generations_) Reconnect(generation);
}

// What it had in hand is lost; of the work on disk the part that was done stays.
void ClusterModel::CrashCoordinator() {
  if (state_ == nullptr) return;
  Log("coordinator dies");
  state_.reset();
  crash_at_next_ = false;
  registered_.clear();
  background_.clear();
  background_busy_ = false;
  for (auto& [name, agent] : agents_) {
    if (agent.stream != 0) BreakStream(&agent, false);
  }
  const bool long_one = chance_.OneIn(6);
  timeline_.After(long_one ? chance_.Ms(4000, 30000) : chance_.Ms(100, 2500),
                  [this] { StartCoordinator(); });
}

// Records are durable before any action is done; a crash comes anywhere between.
absl::Status ClusterModel::Handle(const Event& event, bool may_record) {
  if (state_ == nullptr) return absl::UnavailableError("the coordinator is dead");
  const bool recordable = may_record && MayBeSaidAgain(event);
  Outcome outcome = state_->Handle(event, timeline_.now());
  for (JobRecord& record : outcome.records) {
    const std::string name = record.status().job();
    JobFacts& facts = jobs_[name];
    facts.acknowledged = std::max(facts.acknowledged, record.status().committed_step());
    records_[name] = std::move(record);
  }
  for (NodeRecord& record : outcome.node_records) {
    const std::string name = record.node();
    node_records_[name] = std::move(record);
  }
  if (recordable && outcome.status.ok()) {
    Recorded recorded{event, coordinator_life_};
    if (recorded_.size() < kRecorded) {
      recorded_.push_back(std::move(recorded));
    } else if (chance_.OneIn(4)) {
      recorded_[chance_.Below(kRecorded)] = std::move(recorded);
    }
  }
  const bool changed = !outcome.actions.empty() || !outcome.records.empty();
  if (talks_ && !outcome.status.ok()) Log("  refused: {}", std::string(outcome.status.message()));
  if (!outcome.status.ok() && changed) Fail("M2: a refused event changed something");
  size_t end = outcome.actions.size();
  const bool crash = crash_at_next_ && changed;
  if (crash) end = chance_.Below(static_cast<uint32_t>(end) + 1);
  const uint64_t life = coordinator_life_;
  for (size_t i = 0; i < end && broken_.empty(); ++i) {
    Do(outcome.actions[i]);
    if (life != coordinator_life_ || state_ == nullptr) break;
  }
  if (crash) {
    CrashCoordinator();
    return absl::UnavailableError("the coordinator died");
  }
  if (changed && broken_.empty()) CheckStates();
  return outcome.status;
}

void ClusterModel::TickForEver() {
  if (state_ != nullptr) {
    const absl::Status status = Handle(Tick{});
    if (!status.ok() && state_ != nullptr) Fail("a tick was refused");
    for (auto it = registered_.begin(); it != registered_.end();) {
      it = timeline_.now() >= it->second.renewed + options_.lease_ttl ? registered_.erase(it)
                                                              : std::next(it);
    }
    CheckStates();
  }
  timeline_.After(kTick, [this] { TickForEver(); });
}

void ClusterModel::Do(const Action& action) {
  std::visit(
      [this](const auto& a) {
        using T = std::decay_t<decltype(a)>;
        if constexpr (std::is_same_v<T, SendToAgent> || std::is_same_v<T, PushControl> ||
                      std::is_same_v<T, AnswerReady>) {
          this->Do(a);
        } else if constexpr (std::is_same_v<T, PublishEvent>) {
          moves_ += a.event.note().starts_with("experts moved");
          if (talks_ && a.event.has_note()) Log("  {}: {}", a.job, a.event.note());
          if (talks_ && a.event.has_status()) {
            Log("  {}: {} {}", a.job, JobState_Name(a.event.status().state()),
                a.event.status().reason());
          }
        } else {
          Enqueue(a);
        }
      },
      action);
}

void ClusterModel::Do(const SendToAgent& action) {
  const auto found = agents_.find(action.agent);
  if (found == agents_.end() || !Registered(action.agent)) {
    Fail("a command to " + action.agent + ", which is not registered: " +
         action.command.ShortDebugString());
    return;
  }
  if (action.command.has_start()) CheckStart(action);
  Deliver(&found->second, std::make_shared<AgentCommand>(action.command));
}

void ClusterModel::Do(const PushControl& action) {
  CheckControl(action);
  const GenerationPtr generation = Find(action.job, action.control.generation());
  if (generation == nullptr) return;
  for (uint32_t rank = 0; rank < generation->ranks.size(); ++rank) {
    if (!generation->ranks[rank].alive) continue;
    const uint64_t life = coordinator_life_;
    timeline_.After(chance_.Ms(1, 40), [this, generation, rank, life, control = action.control] {
      if (life == coordinator_life_ && state_ != nullptr) TakeControl(generation, rank, control);
    });
  }
}

void ClusterModel::Do(const AnswerReady& action) {
  const GenerationPtr generation = Find(action.job, action.generation);
  if (generation == nullptr || generation->over) return;
  if (!action.status.ok()) {
    Break(generation, absl::IsAborted(action.status) ? kExitMismatch : kExitStaleGeneration, 0);
    return;
  }
  if (generation->trains) return;
  Log("  {} g{} trains from step {}", generation->job, generation->number, generation->step);
  generation->trains = true;
  for (Rank& rank : generation->ranks) rank.asked = false;
  timeline_.After(chance_.Ms(50, 300), [this, generation] { Train(generation); });
}

// ---- The keeper of checkpoints: one thing after another, each with a delay.
// -----------------------------------------------------------------------------

void ClusterModel::Enqueue(const Action& action) {
  background_.push_back(action);
  if (!background_busy_) Background();
}

void ClusterModel::Background() {
  background_busy_ = !background_.empty();
  if (background_.empty()) return;
  const Action action = std::move(background_.front());
  background_.pop_front();
  const uint64_t life = coordinator_life_;
  timeline_.After(chance_.OneIn(10) ? chance_.Ms(200, 3000) : chance_.Ms(1, 60),
                  [this, life, action] {
                    if (life == coordinator_life_ && state_ != nullptr) Work(action);
                  });
}

// What is done on disk stays, whether its answer is heard or not.
void ClusterModel::Work(const Action& action) {
  std::optional<Event> answer;
  if (const auto* choose = std::get_if<ChooseRestore>(&action)) {
    answer = Choose(*choose);
  } else if (const auto* stage = std::get_if<StageCheckpoint>(&action)) {
    answer = Stage(*stage);
  } else if (const auto* commit = std::get_if<CommitCheckpoint>(&action)) {
    answer = Commit(*commit);
  } else if (const auto* discard = std::get_if<DiscardStaging>(&action)) {
    jobs_[discard->job].staging.erase(discard->staging);
  }
  const uint64_t life = coordinator_life_;
  timeline_.After(chance_.Ms(1, 20), [this, life, answer] {
    if (life != coordinator_life_ || state_ == nullptr) return;
    if (answer) Handle(*answer, true).IgnoreError();
    if (life == coordinator_life_ && state_ != nullptr) Background();
  });
}

RestoreChosen ClusterModel::Choose(const ChooseRestore& action) {
  JobFacts& facts = jobs_[action.job];
  facts.attempt = action.attempt;
  RestoreChosen chosen;
  chosen.job = action.job;
  chosen.attempt = action.attempt;
  const bool some = !facts.disk.empty();
  if (action.verify_content) {
    std::erase_if(facts.disk, [](const auto& entry) { return entry.second.damaged; });
  }
  if (some && facts.disk.empty()) {
    chosen.status = absl::DataLossError("none verifies");
    chosen.exit_code = kExitCheckpointInvalid;
  } else if (!facts.disk.empty()) {
    const auto& [step, stored] = *facts.disk.rbegin();
    chosen.path = "step-" + std::to_string(step);
    chosen.state.set_step(step);
    chosen.state.set_samples(stored.content);
  }
  Log("  {}: the newest on disk is step {}", action.job, chosen.state.step());
  return chosen;
}

CheckpointStaged ClusterModel::Stage(const StageCheckpoint& action) {
  CheckpointStaged staged{action.job, action.generation, action.step, absl::OkStatus(), ""};
  if (disk_full_ && chance_.OneIn(2)) {
    staged.status = absl::ResourceExhaustedError("no space left on device");
    return staged;
  }
  staged.staging = "staging-" + std::to_string(next_name_++);
  jobs_[action.job].staging[staged.staging] = {action.generation, action.step};
  return staged;
}

CommitFinished ClusterModel::Commit(const CommitCheckpoint& action) {
  CommitFinished finished{action.job, action.generation, action.step, absl::OkStatus(), ""};
  JobFacts& facts = jobs_[action.job];
  const auto staging = facts.staging.find(action.staging);
  if (staging == facts.staging.end() ||
      staging->second != std::pair(action.generation, action.step)) {
    finished.status = absl::NotFoundError("no such staging folder");
    return finished;
  }
  if (disk_full_ && chance_.OneIn(2)) {
    finished.status = absl::ResourceExhaustedError("no space left on device");
    return finished;
  }
  std::optional<uint64_t> content;
  for (const ShardsPersisted& shards : action.shards) {
    if (content && *content != shards.state().samples()) {
      Fail("C7: a commit of parts of several contents");
    }
    content = shards.state().samples();
  }
  CheckCommit(action, *content);
  facts.staging.erase(staging);
  const auto there = facts.disk.find(action.step);
  if (there == facts.disk.end() || there->second.damaged) facts.disk[action.step] = {*content};
  finished.path = "step-" + std::to_string(action.step);
  Log("  {}: step {} (content {}) is on disk", action.job, action.step, *content);
  return finished;
}

}  // namespace moesaic
