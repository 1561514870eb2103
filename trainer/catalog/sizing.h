// Sizing: what a layout of a job needs, as arithmetic, without running anything. Weights, moments,
// snapshots and the traffic of gradients and weights follow from the catalog and the placement, and
// have not been compared with a run; activations and partial sums are estimates, and traffic of
// tokens is an expectation over the load.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/layout/expert_load.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "proto/job.pb.h"
#include "trainer/catalog/parameter_catalog.h"

namespace moesaic {

struct SizingInput {
  const JobSpec* spec = nullptr;  // resolved, the catalogue's
  const ParameterCatalog* catalog = nullptr;
  const Mesh* mesh = nullptr;
  const ExpertPlacement* placement = nullptr;
  const ExpertLoad* load = nullptr;  // empty: every expert takes the same
};

// Bytes of one rank.
struct RankMemory {
  // In the process:
  int64_t weights = 0;      // masters of what it owns, compute weights of what it holds
  int64_t moments = 0;      // of the optimizer
  int64_t gradients = 0;    // in reproducible mode with the partial sums, estimated
  int64_t activations = 0;  // of one micro-batch, estimated at the busiest layer loads
  // In shared memory, kept by its agent:
  int64_t snapshot = 0;  // the objects that it writes: masters and moments

  int64_t process() const { return weights + moments + gradients + activations; }
};

// Bytes of one node.
struct NodeMemory {
  std::string node;
  int64_t processes = 0;  // of its ranks
  int64_t snapshot = 0;   // the newest of its ranks
  int64_t in_flight = 0;  // the second buffer, while a snapshot is on its way
  // Of the node before it, in a ring; another as much while a newer one is being copied.
  int64_t peer_copy = 0;

  int64_t most() const { return processes + snapshot + in_flight + 2 * peer_copy; }
};

// Bytes a step that leave a rank for another, over all ranks.
struct StepTraffic {
  double tokens = 0;  // dispatch and return, forward and backward, of all MoE layers
  double counts = 0;  // rows that ranks are about to send one another
  double gradients = 0;
  double weights = 0;        // of experts, from their primaries to their other holders
  double sums = 0;           // loss, norms, counts: the small sum at the end of a step
  double between_nodes = 0;  // of all these, what crosses from one node to another

  double total() const { return tokens + counts + gradients + weights + sums; }
};

struct JobSize {
  std::vector<RankMemory> ranks;
  std::vector<NodeMemory> nodes;  // in the order of their first rank
  StepTraffic traffic;
};

// Pure.
JobSize SizeJob(const SizingInput& input);

}  // namespace moesaic
