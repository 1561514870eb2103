// What happens to the cluster, and what the cluster state asks to be done about it. All data: the
// edges (scheduler/service) translate.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/agent.pb.h"
#include "proto/coordinator.pb.h"
#include "proto/job.pb.h"
#include "proto/record.pb.h"

namespace moesaic {

// ---- Events.
// -------------------------------------------------------------------------------------

struct JobSubmitted {
  JobSpec spec;  // resolved and valid
  std::string resume;
};
struct StopRequested {
  std::string job;
  bool now = false;
};
struct AgentJoined {
  std::string agent;
  std::string incarnation;
  AgentRegistration registration;
};
struct AgentRenewed {
  std::string agent;
  std::string incarnation;
};
// Its stream closed.
struct AgentLost {
  std::string agent;
  std::string incarnation;
  std::string reason;
};
struct GenerationEnd {
  std::string agent;
  std::string incarnation;
  GenerationEnded report;
};
struct ShardsReported {
  std::string agent;
  std::string incarnation;
  ShardsPersisted report;
};
struct RankTableAsked {
  WorkerIdentity worker;
};
struct RankReady {
  ReadyRequest request;
};
struct StepReported {
  StepReport report;
};
struct SnapshotReported {
  SnapshotReport report;
};

// What ChooseRestore found.
struct RestoreChosen {
  std::string job;
  uint64_t attempt = 0;  // of the ChooseRestore that this answers
  absl::Status status;   // not OK: the job cannot start
  int exit_code = 1;     // of the job then
  std::string path;      // empty: a new start
  TrainingState state;   // of the checkpoint
  std::vector<std::string> trajectory_changes;
  std::vector<std::string> notes;  // for people: what was passed over, and why
};
// Answer to StageCheckpoint.
struct CheckpointStaged {
  std::string job;
  uint64_t generation = 0;
  uint64_t step = 0;
  absl::Status status;
  std::string staging;
};
// Answer to CommitCheckpoint.
struct CommitFinished {
  std::string job;
  uint64_t generation = 0;
  uint64_t step = 0;
  absl::Status status;
  std::string path;
};
// A writer that is no agent committed a step (proto/checkpoint_service.proto): it is on disk.
struct StepCommitted {
  std::string job;
  uint64_t step = 0;
  std::string path;
};
// Other bounds for the number of nodes of a job.
struct ResizeRequested {
  std::string job;
  uint32_t min_nodes = 0;
  uint32_t max_nodes = 0;
};
// A person drains, cordons or uncordons a node.
struct NodeChangeRequested {
  ChangeNodeRequest request;
};
// The agent's host goes away soon.
struct AgentPreempted {
  std::string agent;
  std::string incarnation;
  std::string reason;
};
// Answer to the agent command ReplicateSnapshot.
struct CopiesReported {
  std::string agent;
  std::string incarnation;
  SnapshotReplicated report;
};
// Time has passed.
struct Tick {};
// The coordinator took nothing in for so long (a slow disk under its store, a stopped process):
// what agents and ranks said meanwhile still waits, so their silence does not count.
struct Stalled {
  absl::Duration duration;
};

using Event = std::variant<JobSubmitted, StopRequested, AgentJoined, AgentRenewed, AgentLost,
                           GenerationEnd, ShardsReported, RankTableAsked, RankReady, StepReported,
                           SnapshotReported, RestoreChosen, CheckpointStaged, CommitFinished,
                           StepCommitted, ResizeRequested, NodeChangeRequested, AgentPreempted,
                           CopiesReported, Tick, Stalled>;

// ---- Actions.
// ------------------------------------------------------------------------------------

struct SendToAgent {
  std::string agent;
  AgentCommand command;
};
// To every progress stream of the generation.
struct PushControl {
  std::string job;
  Control control;
};
// Ends the Ready calls of a generation, all alike.
struct AnswerReady {
  std::string job;
  uint64_t generation = 0;
  absl::Status status;
};
struct PublishEvent {
  std::string job;
  JobEvent event;
};
// Find the checkpoint that the next generation starts from.
struct ChooseRestore {
  std::string job;
  uint64_t attempt = 0;
  JobSpec spec;
  std::string resume;
  // A worker found damage that a look at the structure does not show: read and check every byte of
  // a candidate, set broken ones aside, and take the newest that is whole.
  bool verify_content = false;
};
// Make a staging folder.
struct StageCheckpoint {
  std::string job;
  uint64_t generation = 0;
  uint64_t step = 0;
  JobSpec spec;
};
// Prove coverage, write the manifest and rename. The next generation does not start before the
// answer, so that no two generations commit.
struct CommitCheckpoint {
  std::string job;
  uint64_t generation = 0;
  uint64_t step = 0;
  std::string staging;
  JobSpec spec;
  std::string layout;
  std::vector<std::string> trajectory_changes;
  std::vector<std::string> writers;
  std::vector<ShardsPersisted> shards;
};
struct DiscardStaging {
  std::string job;
  std::string staging;
};

// A save that was to go to disk has failed: for those who watch checkpoints.
struct TellGivenUp {
  std::string job;
  uint64_t step = 0;
  std::string why;
};

using Action = std::variant<SendToAgent, PushControl, AnswerReady, PublishEvent, ChooseRestore,
                            StageCheckpoint, CommitCheckpoint, DiscardStaging, TellGivenUp>;

struct Outcome {
  // Of the sender's request. An event that is refused changes nothing.
  absl::Status status;
  // Must be durable before any action is done.
  std::vector<JobRecord> records;
  std::vector<NodeRecord> node_records;
  // In this order.
  std::vector<Action> actions;
};

}  // namespace moesaic
