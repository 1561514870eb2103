// Spawn: from a model whose layers have one expert each to one that has all of them (EvoMoE, arXiv
// 2112.14397). Every rank has the one expert, and what is left out of an expert made of it depends
// on the seed and the expert alone: each rank makes the experts that it owns and asks nobody.
#pragma once

#include <vector>

#include "parallel/comm/communicator.h"
#include "proto/job.pb.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/optim/parameter_store.h"

namespace moesaic {

struct SpawnedFrom {
  const ParameterCatalog* catalog = nullptr;  // Experts::kOne
  const ParameterStore* store = nullptr;
};
struct SpawnedInto {
  const ParameterCatalog* catalog = nullptr;  // Experts::kAll
  ParameterStore* store = nullptr;            // zero
};

// Fills what `into` owns: experts as recipe.experts.spawn says; routers by their InitRule, with
// moments of zero; everything else is as it was, with its moments. Compute weights are not touched.
void SpawnExperts(const JobSpec& spec, const SpawnedFrom& from, const SpawnedInto& into);

// Of each layer that `into` has experts in, the mean cosine between two of them (all weights of an
// expert as one vector), as SpawnExperts makes them: for people, 1 means that all are alike.
// Collective over `data`, whose ranks share the layers out; the same bits for any number of ranks.
std::vector<double> ExpertCosines(const JobSpec& spec, const SpawnedFrom& from,
                                  const ParameterCatalog& into, Communicator& data);

}  // namespace moesaic
