// The planner: nodes and a job -> who computes what in the next generation. Pure arithmetic, so
// that `plan` and the coordinator agree and a test can ask about any cluster.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "proto/checkpoint.pb.h"
#include "proto/coordinator.pb.h"
#include "proto/job.pb.h"

namespace moesaic {

struct PlanNode {
  std::string id;
  uint32_t slots = 0;
  uint32_t cores = 0;
  uint64_t memory_bytes = 0;  // 0: unknown
};

// A node that stays idle, and why.
struct SpareNode {
  std::string id;
  std::string reason;
};

struct PlanInput {
  const JobSpec* spec = nullptr;  // resolved and valid
  std::vector<PlanNode> nodes;    // that may be used, in any order
  uint64_t placement_epoch = 0;
  // Of the checkpoint to restore: the load that it recorded, and where its experts lay. Null: a new
  // start.
  const TrainingState* restored = nullptr;
  // Nodes of the last generation in the order of their ranks. Those that are still there keep their
  // ranks as far as they can, newcomers take the places that are free.
  std::vector<std::string> previous_nodes = {};
  // Place experts by the recorded load even where the layout has the shape of the restored state's.
  bool move_experts = false;
  // In place of elastic.nodes.min and max, as `resize` asks; 0: the job's.
  uint32_t min_nodes = 0;
  uint32_t max_nodes = 0;
};

struct GenerationPlan {
  std::vector<PlanNode> nodes;    // used; rank r sits on nodes[r / slots_per_node]
  std::vector<SpareNode> spares;  // by id
  Mesh mesh;
  ExpertPlacement placement;
  uint32_t threads = 1;            // a rank
  int64_t rounds = 0;              // of micro-batches a step: what its duration grows with
  bool survives_any_node = false;  // every expert would still have a holder
  bool kept_placement = false;     // experts stay where the restored state has them
  double imbalance = 1;            // ExpectedImbalance
  std::string layout;              // for people: "2 nodes, data 4, expert 2"
  std::string reason;              // for people: why this layout and no other
};

// A pure function: the same input gives the same plan, whatever the order of its nodes.
//
// The global batch is the job's, whatever the nodes: ranks share its micro-batches, so a step means
// the same in every generation. Takes the fewest nodes that need as few rounds of micro-batches as
// all of them would; of the nodes there are, those of the last generation first, then by id. A
// number of nodes whose ranks would not fit into their memory (by SizeJob, with a spawn that is
// ahead) is passed over for the next best: with other divisors its ranks hold fewer experts each.
//
// Experts stay where the restored state has them, when the layout has the same shape: the same
// layout then gives the same bits in every mode. Otherwise they are placed by the recorded load.
//
// FailedPrecondition: too few usable nodes, or too little memory on any number of them (the message
// says what is missing). InvalidArgument: parallel.expert fits no number of nodes that are there.
absl::StatusOr<GenerationPlan> PlanGeneration(const PlanInput& input);

// The expert degree of so many ranks: parallel.expert; where it is auto, the largest divisor of the
// ranks that is at most the experts of a layer, because the more ranks share a copy of the experts,
// the less memory each needs. 1 without experts. Nothing where parallel.expert does not divide
// them.
std::optional<uint32_t> ExpertDegree(const JobSpec& spec, uint32_t ranks);

// Where experts go on a mesh, and why.
struct PlacedExperts {
  ExpertPlacement placement;
  bool kept = false;  // as the restored state has them
  std::string reason;
};
// As PlanGeneration does it: reads spec, restored, placement_epoch and move_experts of `input`, and
// the memory of `nodes`, in the order of the mesh, which bounds copies of experts; none: unknown.
PlacedExperts PlaceExperts(const PlanInput& input, const std::vector<PlanNode>& nodes,
                           const Mesh& mesh);

// Ranks and placement of a plan as workers get them; the other fields are the caller's.
RankTable MakeRankTable(const JobSpec& spec, const GenerationPlan& plan);

}  // namespace moesaic
