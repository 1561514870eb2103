// What an exit code means, to scripts and to schedulers: docs/exit-codes.md. Verbs, the agent and
// the worker return these and no others, save 128 + n for a signal n; the coordinator reads those
// of workers and gives every job one.
#pragma once

namespace moesaic {

enum ExitCode : int {
  kExitOk = 0,
  kExitJobFailed = 1,
  kExitUsage = 2,            // of the command line or the job file
  kExitNotFound = 3,
  kExitPermission = 4,
  kExitUnreachable = 5,      // no answer from the coordinator
  kExitTimedOut = 6,
  kExitCancelled = 7,
  kExitCheckpointInvalid = 8,
  kExitNoResources = 9,      // fewer nodes than the job's minimum
  kExitGaveUp = 93,          // on purpose: a scheduler must not requeue
  kExitInterrupted = 130,
  kExitTerminated = 143,

  // From a worker to its agent and the coordinator.
  kExitSnapshotLost = 74,    // in memory, that was to be restored
  kExitPlannedRestart = 75,
  kExitWatchdog = 86,
  kExitStaleGeneration = 87,
  kExitMismatch = 88,        // of job, layout or binary among the ranks
  kExitDataCorrupt = 89,
  kExitNonFinite = 90,
  kExitNotStarted = 127,     // mpirun or the worker is not there
};

}  // namespace moesaic
