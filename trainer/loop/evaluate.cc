#include "trainer/loop/evaluate.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/comm/in_process.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/loop/stored_state.h"
#include "trainer/loop/trainer.h"

namespace moesaic {
namespace {

// The job of the checkpoint with the data to evaluate. A trainer opens training data too; what is
// evaluated stands in for it, since the training files may be elsewhere.
JobSpec SpecFor(JobSpec spec, const EvaluateRequest& request) {
  DataSpec* data = spec.mutable_data();
  if (!request.data.empty()) {
    data->clear_validation();
    for (const std::string& path : request.data) {
      DataSource* source = data->add_validation();
      source->set_path(path);
      source->set_weight(1);
    }
  }
  *data->mutable_train() = data->validation();
  return spec;
}

}  // namespace

absl::StatusOr<Evaluation> Evaluate(const EvaluateRequest& request) {
  const auto begin = std::chrono::steady_clock::now();
  at::set_num_threads(request.threads);
  const auto step = OpenCheckpoint(&FileSystem::System(), request.checkpoint);
  if (!step.ok()) return step.status();
  const auto manifest = ReadManifest(*step->folder);
  if (!manifest.ok()) return manifest.status();
  const JobSpec spec = SpecFor(manifest->spec(), request);
  if (spec.data().validation_size() == 0) {
    return absl::NotFoundError(absl::StrCat("[eval] the job of ", step->path,
                                            " names no validation data: give --data"));
  }
  if (absl::Status status = CheckAblation(spec, request.ablation); !status.ok()) return status;
  const Experts which = ExpertsAt(spec, manifest->state().step());
  const auto catalog = ParameterCatalog::Build(spec, which);
  if (!catalog.ok()) return catalog.status();
  std::vector<int> experts;
  for (int layer = 0; layer < catalog->layers(); ++layer) experts.push_back(catalog->experts(layer));

  const auto world = MakeInProcessGroup(1);
  const Mesh mesh = Mesh::Flat(1, 1);
  auto trainer = Trainer::Create({.spec = spec,
                                  .mesh = mesh,
                                  .placement = ExpertPlacement::Even(mesh, experts),
                                  .rank = 0,
                                  .world = world[0].get(),
                                  .experts = which});
  if (!trainer.ok()) return trainer.status();
  if (absl::Status status =
          RestoreWeights(step->path, {.catalog = &(*trainer)->catalog(),
                                      .store = &(*trainer)->store(),
                                      .threads = request.threads});
      !status.ok()) {
    return status;
  }
  (*trainer)->PublishWeights();
  const auto result =
      (*trainer)->Validate({.samples = request.samples, .ablation = request.ablation});
  if (!result.ok()) return result.status();
  return Evaluation{
      .step = manifest->state().step(),
      .loss = result->loss,
      .perplexity = std::exp(result->loss),
      .samples = result->samples,
      .seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(),
      .routing = result->routing};
}

}  // namespace moesaic
