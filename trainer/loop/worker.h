// The worker's life in one generation: rank table -> trainer -> restore -> ready -> steps, with
// snapshots where they are due -> an end that its agent understands. The composition root of
// moesaic-worker; launcher/ gives it the outside.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "parallel/comm/communicator.h"
#include "scheduler/client/coordinator_client.h"
#include "scheduler/client/snapshot_peer.h"
#include "trainer/loop/watchdog.h"

namespace moesaic {

struct WorkerInputs {
  CoordinatorClient* client = nullptr;
  Communicator* world = nullptr;
  Watchdog* watchdog = nullptr;  // may be null
  WorkerIdentity identity = {};  // as the client sends it
  SnapshotPeerFactory open_peer = {};  // to other nodes' snapshots, for a restore
  std::string binary = {};       // version and build, compared among the ranks
};

// How a worker ends; docs/exit-codes.md gives each its exit code.
enum class WorkerEnd {
  kTrained,         // all steps are done and the last snapshot is with the agent
  kStopped,         // stopped on request after a snapshot
  kStale,           // the coordinator has moved on to another generation
  kMismatch,        // the checkpoint or the other ranks do not fit this job
  kCorrupt,         // a token file
  kBadCheckpoint,   // the checkpoint that was to be restored is corrupt
  kSnapshotLost,    // a snapshot in memory that was to be restored is gone
  kBadInput,        // a missing or unusable input file
  kFailed,
};

struct WorkerResult {
  WorkerEnd end = WorkerEnd::kFailed;
  absl::Status status;  // why, unless kTrained or kStopped
};

// Collective over `world`. Catches what tensor code throws.
WorkerResult RunWorker(const WorkerInputs& inputs);

}  // namespace moesaic
