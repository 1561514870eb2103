#include "trainer/loop/stored_state.h"

#include <ATen/ATen.h>

#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/restore.h"

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

absl::Status Restore(const OpenedCheckpoint& from, bool moments, const RestoreInto& into) {
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
  return RestoreObjects(*from.step.folder, from.manifest, targets, into.threads);
}

}  // namespace

std::vector<SnapshotObject> ObjectsToWrite(Trainer& trainer, std::span<const int> writers,
                                           int rank) {
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

absl::StatusOr<TrainingState> RestoreTraining(const std::string& folder, const JobSpec& spec,
                                              const RestoreInto& into) {
  const auto from = Open(folder);
  if (!from.ok()) return from.status();
  absl::Status status = CheckResumable(from->manifest, spec, *into.catalog);
  if (status.ok()) status = Restore(*from, /*moments=*/true, into);
  if (!status.ok()) return status;
  return from->manifest.state();
}

absl::Status RestoreWeights(const std::string& folder, const RestoreInto& into) {
  const auto from = Open(folder);
  if (!from.ok()) return from.status();
  if (absl::Status fits = CheckInitFrom(from->manifest, *into.catalog); !fits.ok()) return fits;
  return Restore(*from, /*moments=*/false, into);
}

}  // namespace moesaic
