// A cluster driven by hand: a ClusterState, a clock, and what it asked for. Agents and workers here
// do nothing unless a test says so.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "proto/job_spec.h"
#include "scheduler/state/cluster_state.h"

namespace moesaic {

inline JobSpec SmallJob(const std::string& name, uint32_t min_nodes, uint32_t max_nodes,
                        uint32_t slots) {
  JobSpec spec;
  spec.set_name(name);
  spec.mutable_model()->set_layers(2);
  spec.mutable_model()->set_hidden(16);
  spec.mutable_model()->set_heads(2);
  spec.mutable_model()->set_sequence(8);
  spec.mutable_model()->set_vocabulary(64);
  spec.mutable_model()->mutable_moe()->set_experts(6);
  spec.mutable_model()->mutable_moe()->set_active(2);
  spec.mutable_model()->mutable_moe()->set_expert_width(8);
  spec.mutable_data()->add_train()->set_path("corpus");
  spec.mutable_train()->set_steps(100);
  spec.mutable_train()->set_global_batch(16);
  spec.mutable_train()->set_micro_batch(1);
  spec.mutable_elastic()->mutable_nodes()->set_min(min_nodes);
  spec.mutable_elastic()->mutable_nodes()->set_max(max_nodes);
  spec.mutable_elastic()->set_slots_per_node(slots);
  spec.mutable_checkpoint()->set_every_steps(1);  // every snapshot goes to disk
  ApplyDefaults(&spec);
  return spec;
}

struct ClusterFixture {
  ClusterOptions options;
  absl::Time now = absl::FromUnixSeconds(1000);
  std::map<std::string, JobRecord> durable;  // what a crash would leave
  std::map<std::string, NodeRecord> durable_nodes;
  std::map<std::pair<std::string, uint64_t>, std::string> tokens;  // of generations
  ClusterState state{options, {}, now};
  Outcome last;

  // Everything asked for since the last Clear.
  std::vector<Action> actions;
  std::map<std::string, std::string> incarnations;

  absl::Status Do(const Event& event) {
    last = state.Handle(event, now);
    for (const JobRecord& record : last.records) durable[record.status().job()] = record;
    for (const NodeRecord& record : last.node_records) durable_nodes[record.node()] = record;
    for (const Action& action : last.actions) {
      const SendToAgent* send = std::get_if<SendToAgent>(&action);
      if (send == nullptr || !send->command.has_start()) continue;
      const auto& start = send->command.start();
      tokens[{start.job(), start.generation()}] = start.token();
    }
    actions.insert(actions.end(), last.actions.begin(), last.actions.end());
    return last.status;
  }
  void Advance(absl::Duration by) {
    now += by;
    EXPECT_TRUE(Do(Tick{}).ok());
  }
  // Time passes; the agents renew their leases.
  void Live(absl::Duration by) {
    const absl::Time until = now + by;
    while (now < until) {
      now = std::min(until, now + absl::Seconds(1));
      for (const auto& [agent, incarnation] : incarnations) {
        Do(AgentRenewed{agent, incarnation}).IgnoreError();
      }
      EXPECT_TRUE(Do(Tick{}).ok());
    }
  }
  absl::Status Join(const std::string& agent, uint32_t slots,
                    const std::string& incarnation = "i1") {
    AgentRegistration registration;
    registration.set_slots(slots);
    registration.set_cores(slots);
    registration.set_host("here");
    registration.set_arena_dir("/dev/shm/" + agent);
    const absl::Status status = Do(AgentJoined{agent, incarnation, registration});
    if (status.ok()) incarnations[agent] = incarnation;
    return status;
  }
  absl::Status Leave(const std::string& agent) {
    const std::string incarnation = incarnations[agent];
    incarnations.erase(agent);
    return Do(AgentLost{agent, incarnation, "its connection closed"});
  }
  // The newest action of a kind; fails the test when there is none.
  template <typename T>
  T Newest() const {
    for (auto it = actions.rbegin(); it != actions.rend(); ++it) {
      if (const T* found = std::get_if<T>(&*it)) return *found;
    }
    ADD_FAILURE() << "no such action";
    return T{};
  }
  template <typename T>
  int Count() const {
    int count = 0;
    for (const Action& action : actions) count += std::holds_alternative<T>(action);
    return count;
  }
  std::vector<AgentCommand> CommandsTo(const std::string& agent) const {
    std::vector<AgentCommand> commands;
    for (const Action& action : actions) {
      const SendToAgent* send = std::get_if<SendToAgent>(&action);
      if (send != nullptr && send->agent == agent) commands.push_back(send->command);
    }
    return commands;
  }

  AgentCommand NewestCommand(const std::string& agent, AgentCommand::KindCase kind) const {
    const std::vector<AgentCommand> commands = CommandsTo(agent);
    for (auto it = commands.rbegin(); it != commands.rend(); ++it) {
      if (it->kind_case() == kind) return *it;
    }
    ADD_FAILURE() << "no such command to " << agent;
    return {};
  }

  const JobStatus& Status(const std::string& job) const { return *state.status(job); }

  absl::Status Restore(const std::string& job, uint64_t step = 0) {
    const ChooseRestore asked = Newest<ChooseRestore>();
    RestoreChosen chosen;
    chosen.job = job;
    chosen.attempt = asked.attempt;
    chosen.state.set_step(step);
    if (step > 0) chosen.path = "checkpoints/step-" + std::to_string(step);
    return Do(chosen);
  }
  WorkerIdentity Worker(const std::string& job, uint32_t rank) const {
    WorkerIdentity worker;
    worker.set_job(job);
    worker.set_generation(Status(job).generation());
    worker.set_incarnation("w" + std::to_string(rank));
    worker.set_rank(rank);
    const auto token = tokens.find({job, worker.generation()});
    if (token != tokens.end()) worker.set_token(token->second);
    return worker;
  }
  absl::Status Ready(const std::string& job, uint32_t rank, const std::string& binary = "b") {
    ReadyRequest request;
    *request.mutable_worker() = Worker(job, rank);
    request.set_binary_hash(binary);
    return Do(RankReady{request});
  }
  void AllReady(const std::string& job) {
    for (uint32_t r = 0; r < Status(job).ranks(); ++r) EXPECT_TRUE(Ready(job, r).ok());
  }
  absl::Status Step(const std::string& job, uint32_t rank, uint64_t step) {
    StepReport report;
    *report.mutable_worker() = Worker(job, rank);
    report.set_step(step);
    report.set_phase("step");
    if (rank == 0) {
      report.mutable_metrics()->set_step(step);
      report.mutable_metrics()->set_generation(Status(job).generation());
      report.mutable_metrics()->set_tokens(10);
      report.mutable_metrics()->set_seconds(0.5);
    }
    return Do(StepReported{report});
  }
  absl::Status Snapshot(const std::string& job, uint32_t rank, uint64_t step, uint32_t buffer = 0) {
    SnapshotReport report;
    *report.mutable_worker() = Worker(job, rank);
    report.set_step(step);
    report.set_buffer(buffer);
    return Do(SnapshotReported{report});
  }
  void SnapshotAll(const std::string& job, uint64_t step, uint32_t buffer = 0) {
    for (uint32_t r = 0; r < Status(job).ranks(); ++r) {
      EXPECT_TRUE(Snapshot(job, r, step, buffer).ok());
    }
  }
  absl::Status Staged(absl::Status status = absl::OkStatus()) {
    const StageCheckpoint stage = Newest<StageCheckpoint>();
    return Do(CheckpointStaged{stage.job, stage.generation, stage.step, status,
                               "staging-" + std::to_string(stage.step)});
  }
  absl::Status Shards(const std::string& agent, uint32_t rank, const std::string& error = "") {
    const StageCheckpoint stage = Newest<StageCheckpoint>();
    ShardsPersisted report;
    report.set_job(stage.job);
    report.set_generation(stage.generation);
    report.set_step(stage.step);
    report.set_staging("staging-" + std::to_string(stage.step));
    report.set_rank(rank);
    report.set_error(error);
    return Do(ShardsReported{agent, incarnations[agent], report});
  }
  void AllShards() {
    const RankTable table = *state.rank_table(Newest<StageCheckpoint>().job);
    for (const RankEntry& entry : table.ranks()) {
      EXPECT_TRUE(Shards(entry.node(), entry.rank()).ok());
    }
  }
  absl::Status Committed(absl::Status status = absl::OkStatus()) {
    const CommitCheckpoint commit = Newest<CommitCheckpoint>();
    return Do(CommitFinished{commit.job, commit.generation, commit.step, status,
                             "checkpoints/step-" + std::to_string(commit.step)});
  }
  void Save(const std::string& job, uint64_t step) {
    SnapshotAll(job, step);
    EXPECT_TRUE(Staged().ok());
    AllShards();
    EXPECT_TRUE(Committed().ok());
  }
  absl::Status End(const std::string& job, const std::string& agent, int code,
                   const std::string& failure = "") {
    GenerationEnded report;
    report.set_job(job);
    report.set_generation(Status(job).generation());
    report.set_exit_code(code);
    report.set_first_failure(failure);
    return Do(GenerationEnd{agent, incarnations[agent], report});
  }
  // One node of two slots runs job "a".
  void RunOnOneNode(JobSpec spec = SmallJob("a", 1, 1, 2)) {
    ASSERT_TRUE(Join("n1", 2).ok());
    ASSERT_TRUE(Do(JobSubmitted{spec, "auto"}).ok());
    ASSERT_TRUE(Restore("a").ok());
    AllReady("a");
    ASSERT_EQ(Status("a").state(), RUNNING);
  }
};

}  // namespace moesaic
