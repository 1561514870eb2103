// StoredState: between a trainer's memory and a checkpoint, in the terms of trainer/checkpoint.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/coordinator.pb.h"
#include "proto/job.pb.h"
#include "scheduler/client/snapshot_peer.h"
#include "trainer/checkpoint/snapshot.h"
#include "trainer/loop/trainer.h"

namespace moesaic {

// What this rank contributes to a snapshot: masters and moments of the parameters that the
// trainer's checkpoint_writers() give to `rank`. Views of the trainer's memory.
std::vector<SnapshotObject> ObjectsToWrite(Trainer& trainer, int rank);

// Where a restore puts what this rank owns.
struct RestoreInto {
  const ParameterCatalog* catalog = nullptr;
  ParameterStore* store = nullptr;
  int threads = 1;
};

// Masters, moments and TrainingState, from `folder`: a step folder or a root (its newest step).
// FailedPrecondition: a checkpoint of another model, with the fields that differ, or one of
// parameters only. DataLoss: damaged, naming file and object. NotFound.
// Compute weights are not touched: the caller publishes them.
absl::StatusOr<TrainingState> RestoreTraining(const std::string& folder, const JobSpec& spec,
                                              const RestoreInto& into);

// Where a rank of a generation finds itself, for a restore from memory.
struct RestoreFrom {
  RestoreSources sources;        // with at least one snapshot, or a path
  std::string node;              // of this rank: its snapshots are files here
  WorkerIdentity asking;         // what agents of other nodes want to know
  SnapshotPeerFactory open_peer; // to those agents
};

// Whether what is stored there is of one expert a layer or of all (without a source: those of step
// 0), so that a trainer can make room for it. DataLoss, NotFound: the step folder.
absl::StatusOr<Experts> StoredExperts(const RestoreFrom& from, const JobSpec& spec);

struct RestoredTraining {
  TrainingState state;
  // For people: from where, how much, and which sources turned out bad.
  std::string summary;
};

// The same from wherever the coordinator says. Per object: this node's memory, another node's, the
// step folder. FailedPrecondition, DataLoss and NotFound as above, for what is on disk;
// Unavailable: a snapshot that this needs is lost, and the step is not on disk.
absl::StatusOr<RestoredTraining> RestoreTraining(const RestoreFrom& from, const JobSpec& spec,
                                                 const RestoreInto& into);

// Masters only. For train.init_from, evaluation and generation. Errors as above, but a checkpoint
// of parameters only will do.
absl::Status RestoreWeights(const std::string& folder, const RestoreInto& into);

}  // namespace moesaic
