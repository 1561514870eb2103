// Which rank writes which parameter to the checkpoint: exactly one each, so that a checkpoint holds
// no copy twice, and about evenly.
#pragma once

#include <vector>

#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "trainer/catalog/parameter_catalog.h"

namespace moesaic {

// By ParameterId. An expert is written by its primary; a dense parameter, which every rank owns, by
// the rank that has least to write (largest first, lowest rank among equals).
std::vector<int> CheckpointWriters(const ParameterCatalog& catalog, const Mesh& mesh,
                                   const ExpertPlacement& placement);

}  // namespace moesaic
