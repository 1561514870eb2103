// CheckpointWriters: saves by processes that are not agents of the generation (Begin, Report,
// Commit of proto/checkpoint_service.proto). Each step of a save is refused unless its generation
// is the job's current one; so is what a stale one began.
//
// The token of the generation is what makes a writer: whoever has it belongs to the run and is
// believed that the run is at that step, as a rank's agent is. So its commit is the job's like any
// other: the job's committed_step follows, retention counts it, and the next generation goes on
// from it. There is no way to save into a job's folder from outside its run: another trajectory
// would meet the job's own.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "proto/checkpoint_service.pb.h"
#include "scheduler/service/coordinator.h"

namespace moesaic {

// Thread-safe. Disk work in the caller's thread.
class CheckpointWriters {
 public:
  // `core` must outlive it.
  explicit CheckpointWriters(CoordinatorCore* core) : core_(core) {}

  // The staging folder, whose name cannot be guessed. FailedPrecondition "stale generation ...",
  // PermissionDenied for a wrong token, NotFound, InvalidArgument.
  absl::StatusOr<std::string> Begin(const BeginCheckpointRequest& request);
  // FailedPrecondition when no such save goes on, or the generation is over.
  absl::Status Report(const ShardsPersisted& report);
  // Proof of coverage, manifest, rename. Whatever the error, nothing was committed.
  absl::StatusOr<CheckpointEntry> Commit(const CommitCheckpointRequest& request);

 private:
  struct Save {
    WorkerIdentity writer;
    uint64_t step = 0;
    uint32_t ranks = 0;
    JobSpec spec;
    std::map<uint32_t, ShardsPersisted> reports;
  };

  // Takes away, and returns the staging folders of, the saves of generations that are over.
  std::vector<std::pair<std::string, Save>> TakeStale();
  void Discard(const std::string& staging, const Save& save, const std::string& why);

  CoordinatorCore* const core_;
  Mutex mutex_;
  std::map<std::string, Save> saves_ ABSL_GUARDED_BY(mutex_);  // by staging folder
};

}  // namespace moesaic
