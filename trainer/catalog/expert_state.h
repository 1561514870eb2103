// What a checkpoint says of experts: how many tokens each took, and where they lay.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/layout/expert_load.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "proto/checkpoint.pb.h"
#include "proto/job.pb.h"

namespace moesaic {

// Experts of each layer; 0 for a dense one.
std::vector<int> ExpertsOfLayers(const ModelSpec& model);

// Folds one step's token counts of `layer` into the exponential mean of `state`: the first counts
// as they are, later ones with a weight of 1/64. The counts are integers and equal on all ranks,
// and so is the mean, bit for bit, whatever the layout.
void RecordExpertCounts(int layer, std::span<const double> counts, TrainingState* state);

// The mean that was recorded. Empty (unknown) when there is none, or none that fits the model.
ExpertLoad RecordedLoad(const ModelSpec& model, const TrainingState& state);

StoredPlacement StorePlacement(const JobSpec& spec, const Mesh& mesh,
                               const ExpertPlacement& placement);

// The placement that was stored. NotFound when it is of a mesh of another shape, or was made for
// another parallel.expert_copies. InvalidArgument when it is damaged.
absl::StatusOr<ExpertPlacement> KeptPlacement(const JobSpec& spec, const Mesh& mesh,
                                              const StoredPlacement& stored, uint64_t epoch);

}  // namespace moesaic
