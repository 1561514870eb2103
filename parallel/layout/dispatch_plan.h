// DispatchPlan: where each row of one MoE layer and one round goes, as data. Made from counts
// alone; an exchange executes it.
//
// An expert id is a place in the pool that the layer chooses from: the experts of the layers that
// make it up, one layer after the other (mostly one layer, the layer itself).
//
// A sender has its (token, slot) pairs sorted by expert id, and by token within an expert: its
// "sorted rows". A holder lays received rows out by (expert, source), so that an expert's rows are
// one contiguous range, and the rows of one logical micro-batch a contiguous part of it in global
// token order (sources are ordered as the expert communicator's ranks, whose micro-batch blocks
// ascend).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"

namespace moesaic {

// Rows [begin, begin + rows).
struct RowRange {
  int64_t begin = 0;
  int64_t rows = 0;
  bool operator==(const RowRange&) const = default;
};

// Rows of one expert that come from one source.
struct Segment {
  int expert = 0;            // id in the pool
  int source = 0;            // rank in the expert communicator
  int64_t micro_batch = -1;  // that the source runs in this round; -1: none (then rows is 0)
  RowRange rows;             // in the holder's buffer
  bool here = true;          // whether this holder takes them, not another (then rows is 0)
};

struct DispatchPlan {
  // By rank of the expert communicator: ranges of my sorted rows to send there, by expert; none is
  // empty.
  std::vector<std::vector<RowRange>> send;
  // By rank of the expert communicator: ranges of my receive buffer that come from there, by
  // expert. Range k of `receive[s]` here is range k of `send[me]` at s, with equal rows.
  std::vector<std::vector<RowRange>> receive;
  // By (expert, source); experts that I hold and no rank sends to have segments of zero rows.
  std::vector<Segment> segments;
  int64_t send_rows = 0;
  int64_t receive_rows = 0;

  // The rows of each expert I hold, by id: what fast mode multiplies at once.
  struct ExpertRows {
    int expert = 0;
    RowRange rows;
  };
  std::vector<ExpertRows> experts;
};

struct DispatchInputs {
  const Mesh* mesh = nullptr;
  const ExpertPlacement* placement = nullptr;
  int rank = 0;  // mine, in the mesh
  std::span<const int> layers = {};  // whose experts are the pool
  // counts[s * experts + e]: sorted rows of source s (rank of the expert communicator) for expert
  // e.
  std::span<const int64_t> counts = {};
  // By rank of the expert communicator: its logical micro-batch of this round, -1: none.
  std::span<const int64_t> micro_batches = {};
};

// Pure. Aborts when the sizes of `counts` or `micro_batches` do not fit the mesh and the pool.
DispatchPlan PlanDispatch(const DispatchInputs& inputs);

}  // namespace moesaic
