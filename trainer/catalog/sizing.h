// Sizing: what a layout of a job needs, as arithmetic, without running anything. The tests compare it
// with what runs really hold and send: weights, moments, gradients of fast mode, snapshots,
// checkpoints and the traffic of gradients and weights are exact; the partial sums of reproducible
// mode are an upper bound, activations an estimate, and traffic of tokens is an expectation over the
// load. With a dense-to-sparse gate both are those of its densest step, in which tokens take all
// experts.
#pragma once

#include <algorithm>
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
  // The catalogue until the job's spawn, where that is ahead (CatalogsAhead); null: it is not.
  const ParameterCatalog* before_spawn = nullptr;
};

// Bytes of one rank.
struct RankMemory {
  // In the process:
  int64_t weights = 0;      // masters of what it owns, compute weights of what it holds
  int64_t moments = 0;      // of the optimizer
  // With what is received of others' parts of a bucket, and with partial sums: in reproducible mode
  // as if every expert got rows of every micro-batch, so no less than what there will be.
  int64_t gradients = 0;
  int64_t activations = 0;  // of one micro-batch, estimated
  // While experts are made of one, when the parameters from before and those of all experts exist
  // side by side, each with `gradients`, and no activations (in reproducible mode more than there
  // will be: partial sums come later); 0: no spawn is ahead.
  int64_t at_spawn = 0;
  // In shared memory, kept by its agent:
  int64_t snapshot = 0;  // the objects that it writes: masters and moments; without their index

  int64_t parameters() const { return weights + moments + gradients; }
  int64_t process() const { return parameters() + activations; }
};

// Bytes of one node.
struct NodeMemory {
  std::string node;
  int64_t processes = 0;  // of its ranks
  int64_t snapshot = 0;   // the newest of its ranks
  int64_t in_flight = 0;  // the second buffer, while a snapshot is on its way
  // Of the node before it, in a ring; another as much while a newer one is being copied.
  int64_t peer_copy = 0;
  // The most before the spawn and at it, with the snapshots of then; 0: no spawn is ahead.
  int64_t until_spawn = 0;

  int64_t snapshots() const { return snapshot + in_flight + 2 * peer_copy; }
  // Once all experts are there.
  int64_t steady() const { return processes + snapshots(); }
  int64_t most() const { return std::max(steady(), until_spawn); }
};

// Bytes a step that leave a rank for another, over all ranks. An all-reduce counts as a
// reduce-scatter and an all-gather.
struct StepTraffic {
  double tokens = 0;  // dispatch and return, forward and backward, of all MoE layers
  double counts = 0;  // rows that ranks are about to send one another
  // In reproducible mode an upper bound: partial sums of experts without rows are not sent.
  double gradients = 0;
  double weights = 0;        // of experts, from their primaries to their other holders
  double sums = 0;           // loss, norms, counts: the small sum at the end of a step
  double between_nodes = 0;  // of all these, what crosses from one node to another

  double total() const { return tokens + counts + gradients + weights + sums; }
};

struct JobSize {
  std::vector<RankMemory> ranks;
  std::vector<NodeMemory> nodes;  // in the order of their first rank
  int64_t checkpoint = 0;         // tensors of one on disk, without their headers
  StepTraffic traffic;
};

// Pure.
JobSize SizeJob(const SizingInput& input);

// Of the arithmetic of a step, what experts do: matrix products and attention scores, with experts
// taking equally many tokens.
double ExpertShare(const JobSpec& spec, const ParameterCatalog& catalog);

// Additions and multiplications of a step of so many tokens, of which (token, expert) `pairs` reach an
// expert: matrix products and attention scores, forward and twice that backward.
double StepOperations(const JobSpec& spec, const ParameterCatalog& catalog, double tokens,
                      double pairs);

}  // namespace moesaic
