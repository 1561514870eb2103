// From samples as numbers to the MicroBatch that blocks take.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/layout/mesh.h"
#include "parallel/layout/micro_batch_plan.h"
#include "trainer/data/batch_source.h"
#include "trainer/model/block.h"

namespace moesaic {

// Micro-batch ids that the ranks of `rank`'s expert group run in `round`, by rank of the expert
// communicator; -1: none.
std::vector<int64_t> RoundIds(const Mesh& mesh, int rank, const MicroBatchPlan& plan,
                              int64_t round);

// Which micro-batch of a round it is.
struct MicroBatchPlace {
  int64_t id = -1;            // -1: none
  int64_t first_sample = 0;
  std::vector<int64_t> round_ids;
};

// `samples` may be empty: the rank joins the round with zero sequences.
MicroBatch MakeMicroBatch(SampleBatch samples, int64_t length, MicroBatchPlace place);

}  // namespace moesaic
