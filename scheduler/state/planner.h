// The planner: nodes and a job -> who computes what in the next generation. Pure arithmetic, so
// that `plan` and the coordinator agree and a test can ask about any cluster.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "proto/coordinator.pb.h"
#include "proto/job.pb.h"

namespace moesaic {

struct PlanNode {
  std::string id;
  uint32_t slots = 0;
  uint32_t cores = 0;
};

// A node that stays idle, and why.
struct SpareNode {
  std::string id;
  std::string reason;
};

struct GenerationPlan {
  std::vector<PlanNode> nodes;  // used, by id; rank r sits on nodes[r / slots_per_node]
  std::vector<SpareNode> spares;
  Mesh mesh;
  ExpertPlacement placement;
  uint32_t threads = 1;  // a rank
  std::string layout;    // for people: "2 nodes, data 4, expert 2"
};

// Ranks are numbered over the nodes sorted by id. The global batch is the job's, whatever the
// nodes: ranks share its micro-batches, so a step means the same in every generation. Takes the
// fewest nodes that need as few rounds of micro-batches as elastic.nodes.max would.
//
// `spec` must be resolved and valid. FailedPrecondition: too few usable nodes (the message says
// what is missing). InvalidArgument: parallel.expert fits no number of nodes that are there.
absl::StatusOr<GenerationPlan> PlanGeneration(const JobSpec& spec, std::vector<PlanNode> nodes,
                                              uint64_t placement_epoch);

// Ranks and placement of a plan as workers get them; the other fields are the caller's.
RankTable MakeRankTable(const JobSpec& spec, const GenerationPlan& plan);

}  // namespace moesaic
