#include "trainer/loop/stored_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/object_source.h"
#include "trainer/checkpoint/restore.h"
#include "trainer/checkpoint/tasks.h"

namespace moesaic {
namespace {

struct StateTensor {
  ObjectKind kind;
  at::Tensor tensor;
};

// The tensors that a checkpoint holds of an owned parameter.
std::vector<StateTensor> StateOf(const ParameterStore& store, ParameterId id) {
  std::vector<StateTensor> tensors = {{MASTER, store.master(id)}};
  if (store.first_moment(id).defined()) {
    tensors.push_back({ADAM_M, store.first_moment(id)});
    tensors.push_back({ADAM_V, store.second_moment(id)});
  }
  return tensors;
}

std::vector<uint64_t> ShapeOf(const ParameterSpec& spec) {
  return {spec.shape.begin(), spec.shape.end()};
}

struct OpenedCheckpoint {
  StepFolder step;
  Manifest manifest;
};

absl::StatusOr<OpenedCheckpoint> Open(const std::string& folder) {
  auto step = OpenCheckpoint(&FileSystem::System(), folder);
  if (!step.ok()) return step.status();
  auto manifest = ReadManifest(*step->folder);
  if (!manifest.ok()) return manifest.status();
  return OpenedCheckpoint{*std::move(step), *std::move(manifest)};
}

std::vector<RestoreTarget> Targets(bool moments, const RestoreInto& into) {
  std::vector<RestoreTarget> targets;
  for (const ParameterId id : into.store->owned()) {
    const ParameterSpec& spec = (*into.catalog)[id];
    for (const StateTensor& state : StateOf(*into.store, id)) {
      if (state.kind != MASTER && !moments) continue;
      targets.push_back({.kind = state.kind,
                         .name = spec.name,
                         .box = WholeBox(ShapeOf(spec)),
                         .destination = {state.tensor.mutable_data_ptr<float>(),
                                         static_cast<size_t>(state.tensor.numel())}});
    }
  }
  return targets;
}

absl::Status Restore(const OpenedCheckpoint& from, bool moments, const RestoreInto& into) {
  return RestoreObjects(*from.step.folder, from.manifest, Targets(moments, into), into.threads);
}

// A snapshot of this job can differ from its catalogue only by an error of ours; it must not pass.
absl::Status CheckShapes(const ObjectSource& source, const ParameterCatalog& catalog) {
  for (const StoredPart& part : source.parts()) {
    const ParameterId id = catalog.Find(part.name);
    if (id < 0 || ShapeOf(catalog[id]) != part.shape) {
      return absl::FailedPreconditionError(
          absl::StrCat(source.name(), ": object ", ObjectLabel(part.kind, part.name), " of shape ",
                       DescribeShape(part.shape), " is not one of this job"));
    }
  }
  return absl::OkStatus();
}

// Reading from another host waits more than it computes.
constexpr int kLeastReaders = 4;

// A restore that may take from several places. Snapshots of this node come first.
class TieredRestore {
 public:
  TieredRestore(const RestoreFrom& from, const RestoreInto& into) : from_(from), into_(into) {}

  absl::StatusOr<RestoredTraining> Run(const JobSpec& spec) {
    OpenSnapshots();
    absl::Status disk = OpenDisk(spec);
    if (!disk.ok() && snapshots_ == 0) return disk;
    if (!disk.ok()) bad_.push_back(std::string(disk.message()));
    if (sources_.empty()) return Lost(absl::NotFoundError("no source is left"));
    std::vector<const ObjectSource*> sources;
    for (const auto& source : sources_) sources.push_back(source.get());
    const auto summary = RestoreObjects(sources, Targets(/*moments=*/true, into_),
                                        std::max(into_.threads, kLeastReaders));
    if (!summary.ok()) return Refuse(summary.status());
    for (const BadSource& bad : summary->bad) bad_.push_back(std::string(bad.status.message()));
    return RestoredTraining{sources_.front()->state(), Describe(*summary)};
  }

 private:
  struct Tier {
    const char* name;
    uint64_t bytes = 0;
  };

  void OpenSnapshots() {
    std::vector<const SnapshotSource*> wanted;
    for (const bool own : {true, false}) {
      for (const SnapshotSource& source : from_.sources.snapshots()) {
        if ((source.node() == from_.node) == own) wanted.push_back(&source);
      }
      if (own) own_ = static_cast<int>(wanted.size());
    }
    std::vector<absl::StatusOr<std::unique_ptr<ObjectSource>>> opened(wanted.size());
    RunTasks(static_cast<int>(wanted.size()), kLeastReaders, [&](int i) {
      const SnapshotSource& source = *wanted[static_cast<size_t>(i)];
      opened[static_cast<size_t>(i)] =
          i < own_ ? OpenArenaSource(source.snapshot()) : OpenPeer(source);
      return absl::OkStatus();
    }).IgnoreError();
    const int own = std::exchange(own_, 0);
    for (size_t i = 0; i < opened.size(); ++i) {
      absl::Status status = opened[i].status();
      if (status.ok()) status = CheckShapes(**opened[i], *into_.catalog);
      if (!status.ok()) {
        bad_.push_back(std::string(status.message()));
        continue;
      }
      if (static_cast<int>(i) < own) ++own_;
      sources_.push_back(*std::move(opened[i]));
    }
    snapshots_ = static_cast<int>(wanted.size());
    held_ = static_cast<int>(sources_.size());
  }

  absl::StatusOr<std::unique_ptr<ObjectSource>> OpenPeer(const SnapshotSource& source) const {
    SnapshotRef ref;
    ref.set_job(source.snapshot().job());
    ref.set_generation(source.snapshot().generation());
    ref.set_step(source.snapshot().step());
    ref.set_rank(source.snapshot().rank());
    ref.set_asking_generation(from_.asking.generation());
    ref.set_token(from_.asking.token());
    return OpenPeerSource(from_.open_peer(source.address()), ref, source.node());
  }

  absl::Status OpenDisk(const JobSpec& spec) {
    if (from_.sources.path().empty()) return absl::OkStatus();
    auto opened = Open(from_.sources.path());
    if (!opened.ok()) return opened.status();
    checkpoint_ = *std::move(opened);
    absl::Status fits = CheckResumable(checkpoint_->manifest, spec, *into_.catalog);
    if (!fits.ok()) return fits;
    if (snapshots_ > 0 && checkpoint_->manifest.state().step() != from_.sources.step()) {
      return absl::FailedPreconditionError(
          absl::StrCat(from_.sources.path(), " is not of step ", from_.sources.step()));
    }
    sources_.push_back(StepFolderSource(*checkpoint_->step.folder, checkpoint_->manifest));
    return absl::OkStatus();
  }

  // Damage on disk is said as it is: that step must be passed over. All else that goes wrong with
  // snapshots in play is the loss of a snapshot.
  absl::Status Refuse(const absl::Status& status) const {
    if (snapshots_ == 0) return status;
    const bool disk_failed = static_cast<int>(sources_.size()) > held_ &&
                             absl::StrContains(status.message(), from_.sources.path());
    return disk_failed ? status : Lost(status);
  }

  absl::Status Lost(const absl::Status& status) const {
    return absl::UnavailableError(absl::StrCat(
        "a snapshot of step ", from_.sources.step(), " that this rank needs is lost: ",
        status.message(), bad_.empty() ? "" : "; ", absl::StrJoin(bad_, "; ")));
  }

  std::string Describe(const RestoreSummary& summary) const {
    Tier tiers[] = {{"own memory"}, {"memory of other nodes"}, {"disk"}};
    for (size_t i = 0; i < summary.bytes.size(); ++i) {
      const int source = static_cast<int>(i);
      tiers[source < own_ ? 0 : source < held_ ? 1 : 2].bytes += summary.bytes[i];
    }
    std::vector<std::string> parts;
    for (const Tier& tier : tiers) {
      if (tier.bytes > 0) parts.push_back(absl::StrCat(tier.bytes, " bytes from ", tier.name));
    }
    std::string text = absl::StrJoin(parts, ", ");
    if (!bad_.empty()) absl::StrAppend(&text, "; not used: ", absl::StrJoin(bad_, "; "));
    return text;
  }

  const RestoreFrom& from_;
  const RestoreInto& into_;
  std::optional<OpenedCheckpoint> checkpoint_;
  std::vector<std::unique_ptr<ObjectSource>> sources_;  // own, other nodes', disk
  int snapshots_ = 0;  // that the coordinator named
  int own_ = 0;        // of sources_
  int held_ = 0;       // of sources_ that are in memory, own ones too
  std::vector<std::string> bad_;
};

}  // namespace

std::vector<SnapshotObject> ObjectsToWrite(Trainer& trainer, int rank) {
  const std::vector<int>& writers = trainer.checkpoint_writers();
  std::vector<SnapshotObject> objects;
  for (const ParameterId id : trainer.store().owned()) {
    if (writers[id] != rank) continue;
    const ParameterSpec& spec = trainer.catalog()[id];
    for (const StateTensor& state : StateOf(trainer.store(), id)) {
      objects.push_back({.kind = state.kind,
                         .name = spec.name,
                         .shape = ShapeOf(spec),
                         .box = WholeBox(ShapeOf(spec)),
                         .source = {state.tensor.const_data_ptr<float>(),
                                    static_cast<size_t>(state.tensor.numel())},
                         .layer = spec.expert >= 0 ? spec.layer : -1,
                         .expert = spec.expert});
    }
  }
  return objects;
}

absl::StatusOr<Experts> StoredExperts(const RestoreFrom& from, const JobSpec& spec) {
  // Snapshots are of this very job; a step folder may be of one that spawned at another step.
  const bool snapshots = from.sources.snapshots_size() > 0;
  if (!from.sources.path().empty()) {
    const auto opened = Open(from.sources.path());
    if (opened.ok()) return ExpertsAt(opened->manifest.spec(), opened->manifest.state().step());
    if (!snapshots) return opened.status();
  }
  return ExpertsAt(spec, snapshots ? from.sources.step() : 0);
}

absl::StatusOr<TrainingState> RestoreTraining(const std::string& folder, const JobSpec& spec,
                                              const RestoreInto& into) {
  const auto from = Open(folder);
  if (!from.ok()) return from.status();
  absl::Status status = CheckResumable(from->manifest, spec, *into.catalog);
  if (status.ok()) status = Restore(*from, /*moments=*/true, into);
  if (!status.ok()) return status;
  return from->manifest.state();
}

absl::StatusOr<RestoredTraining> RestoreTraining(const RestoreFrom& from, const JobSpec& spec,
                                                 const RestoreInto& into) {
  return TieredRestore(from, into).Run(spec);
}

absl::Status RestoreWeights(const std::string& folder, const RestoreInto& into) {
  const auto from = Open(folder);
  if (!from.ok()) return from.status();
  if (absl::Status fits = CheckInitFrom(from->manifest, *into.catalog); !fits.ok()) return fits;
  return Restore(*from, /*moments=*/false, into);
}

}  // namespace moesaic
