// What must hold of a plan, for random jobs and clusters.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <set>

#include "parallel/layout/micro_batch_plan.h"
#include "scheduler/state/planner.h"
#include "tests/scheduler/state/cluster_fixture.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/catalog/sizing.h"

namespace moesaic {
namespace {

struct World {
  JobSpec spec;
  std::vector<PlanNode> nodes;
  std::optional<TrainingState> restored;
  std::vector<std::string> previous;

  PlanInput Input() const {
    PlanInput input;
    input.spec = &spec;
    input.nodes = nodes;
    input.placement_epoch = 9;
    if (restored) input.restored = &*restored;
    input.previous_nodes = previous;
    return input;
  }
};

class Dice {
 public:
  explicit Dice(unsigned seed) : random_(seed) {}
  uint32_t operator()(uint32_t low, uint32_t high) { return low + random_() % (high - low + 1); }
  bool Chance(uint32_t one_in) { return (*this)(1, one_in) == 1; }
  std::mt19937& random() { return random_; }

 private:
  std::mt19937 random_;
};

World RandomWorld(Dice& dice) {
  World world;
  const uint32_t slots = dice(1, 4), min = dice(1, 4);
  world.spec = SmallJob("a", min, dice(min, 8), slots);
  ModelSpec* model = world.spec.mutable_model();
  const uint32_t experts = dice(1, 12);
  model->mutable_moe()->set_experts(experts);
  model->mutable_moe()->set_active(std::min(experts, 2u));
  if (dice.Chance(3)) {
    model->mutable_moe()->mutable_pattern()->set_every(2);
    model->set_dense_width(8);
  }
  world.spec.mutable_train()->set_global_batch(dice(1, 40));
  if (dice.Chance(3)) world.spec.mutable_parallel()->set_expert(dice(1, experts));
  if (dice.Chance(2)) world.spec.mutable_parallel()->set_expert_copies(dice(0, 2));
  const uint64_t memory = dice.Chance(2) ? uint64_t{dice(1, 64)} << dice(14, 20) : 0;
  for (uint32_t i = dice(0, 9); i > 0; --i) {
    const uint32_t has = dice.Chance(6) ? dice(0, slots) : slots + dice(0, 1);
    world.nodes.push_back({"n" + std::to_string(i), has, has, memory});
  }
  for (uint32_t i = dice(0, 5); i > 0; --i) {
    const std::string name = "n" + std::to_string(dice(1, 12));
    if (std::find(world.previous.begin(), world.previous.end(), name) == world.previous.end()) {
      world.previous.push_back(name);
    }
  }
  if (dice.Chance(2)) {
    world.restored.emplace();
    const std::vector<int> by_layer = ExpertsOfLayers(*model);
    for (size_t layer = 0; layer < by_layer.size(); ++layer) {
      std::vector<double> counts(by_layer[layer]);
      for (double& count : counts) count = dice(0, 10) * dice(0, 100);
      if (!counts.empty()) {
        RecordExpertCounts(static_cast<int>(layer), counts, &*world.restored);
      }
    }
  }
  return world;
}

// Whether ranks on so many nodes fit into memory, experts placed evenly.
bool Fits(const World& world, uint32_t nodes) {
  const uint64_t memory = world.nodes.empty() ? 0 : world.nodes[0].memory_bytes;
  if (memory == 0) return true;
  const uint32_t slots = world.spec.elastic().slots_per_node();
  const uint32_t degree = *ExpertDegree(world.spec, nodes * slots);
  std::vector<RankPlace> places;
  for (uint32_t r = 0; r < nodes * slots; ++r) {
    places.push_back({.rank = static_cast<int>(r),
                      .node = "n" + std::to_string(r / slots),
                      .local_rank = static_cast<int>(r % slots),
                      .data = static_cast<int>(r),
                      .expert_group = static_cast<int>(r / degree),
                      .expert = static_cast<int>(r % degree)});
  }
  const Mesh mesh = *Mesh::Create(places);
  const ExpertPlacement placement =
      ExpertPlacement::Even(mesh, ExpertsOfLayers(world.spec.model()));
  const ParameterCatalog catalog = *ParameterCatalog::Build(world.spec);
  const ExpertLoad load =
      world.restored ? RecordedLoad(world.spec.model(), *world.restored) : ExpertLoad();
  const JobSize size = SizeJob({.spec = &world.spec,
                                .catalog = &catalog,
                                .mesh = &mesh,
                                .placement = &placement,
                                .load = &load});
  return std::all_of(size.nodes.begin(), size.nodes.end(), [&](const NodeMemory& node) {
    return static_cast<double>(node.most()) <= 0.9 * static_cast<double>(memory);
  });
}

bool IsLegal(const World& world, uint32_t nodes) {
  return ExpertDegree(world.spec, nodes * world.spec.elastic().slots_per_node()).has_value();
}

// The best number of nodes; 0: none is legal and has the memory.
uint32_t BestCount(const World& world, uint32_t usable) {
  const uint32_t slots = world.spec.elastic().slots_per_node();
  uint32_t best = 0;
  int64_t fewest = 0;
  for (uint32_t n = world.spec.elastic().nodes().min(); n <= usable; ++n) {
    if (!IsLegal(world, n) || !Fits(world, n)) continue;
    const int64_t rounds =
        MicroBatchPlan{world.spec.train().global_batch(), static_cast<int>(n * slots)}.rounds();
    if (best == 0 || rounds < fewest) {
      best = n;
      fewest = rounds;
    }
  }
  return best;
}

void ExpectExpertsAreHeld(const World& world, const GenerationPlan& plan) {
  const Mesh& mesh = plan.mesh;
  const std::vector<int> experts = ExpertsOfLayers(world.spec.model());
  ASSERT_EQ(plan.placement.layers(), static_cast<int>(experts.size()));
  std::vector<int64_t> held(mesh.size(), 0);
  int64_t total = 0, moe_layers = 0;
  bool survives = true;
  for (int layer = 0; layer < plan.placement.layers(); ++layer) {
    ASSERT_EQ(plan.placement.experts(layer), experts[layer]);
    total += experts[layer];
    moe_layers += experts[layer] > 0;
    for (int e = 0; e < experts[layer]; ++e) {
      std::set<int> groups;
      std::set<std::string> nodes;
      for (const int rank : plan.placement.holders(layer, e)) {
        groups.insert(mesh.place(rank).expert_group);
        nodes.insert(mesh.place(rank).node);
        ++held[rank];
      }
      EXPECT_EQ(static_cast<int>(groups.size()), mesh.expert_groups());
      survives = survives && nodes.size() > 1;
    }
  }
  EXPECT_EQ(plan.survives_any_node, survives);
  const int64_t copies = world.spec.parallel().has_expert_copies()
                             ? world.spec.parallel().expert_copies()
                             : (world.restored ? 1 : 0);
  const int64_t share = (total + mesh.expert_size() - 1) / mesh.expert_size();
  // Even placement rounds up in each layer, balanced placement over all.
  const int64_t most =
      std::max(share + 1,
               moe_layers * ((experts.back() + experts.front() + mesh.expert_size() - 1) /
                             mesh.expert_size())) +
      moe_layers * copies;
  EXPECT_LE(*std::max_element(held.begin(), held.end()), most);
}

void ExpectPlacesAreKept(const World& world, const GenerationPlan& plan) {
  const size_t count = plan.nodes.size();
  size_t survivors = 0;
  for (size_t i = 0; i < world.previous.size(); ++i) {
    const bool used = std::any_of(plan.nodes.begin(), plan.nodes.end(), [&](const PlanNode& node) {
      return node.id == world.previous[i];
    });
    survivors += used;
    if (used && i < count) {
      EXPECT_EQ(plan.nodes[i].id, world.previous[i]);
    }
    // A survivor is spare only when the survivors before it fill the layout.
    const bool spare =
        std::any_of(plan.spares.begin(), plan.spares.end(), [&](const SpareNode& node) {
          return node.id == world.previous[i] &&
                 node.reason.find("slots, the job") == std::string::npos;
        });
    if (spare) {
      EXPECT_EQ(survivors, count);
    }
  }
  for (int rank = 0; rank < plan.mesh.size(); ++rank) {
    const uint32_t slots = world.spec.elastic().slots_per_node();
    EXPECT_EQ(plan.mesh.place(rank).node, plan.nodes[static_cast<uint32_t>(rank) / slots].id);
  }
}

TEST(PlannerProperty, HoldsForRandomJobsAndClusters) {
  int planned = 0, refused = 0, spares = 0, by_load = 0, short_of_memory = 0, passed_over = 0;
  for (unsigned seed = 1; seed <= 3000; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Dice dice(seed);
    World world = RandomWorld(dice);
    const JobSpec& spec = world.spec;
    ASSERT_TRUE(ValidateJob(spec).empty()) << ValidateJob(spec)[0].message;
    const uint32_t slots = spec.elastic().slots_per_node();
    const auto fit = static_cast<uint32_t>(
        std::count_if(world.nodes.begin(), world.nodes.end(),
                      [&](const PlanNode& node) { return node.slots >= slots; }));
    const auto plan = PlanGeneration(world.Input());
    if (fit < spec.elastic().nodes().min()) {
      EXPECT_TRUE(absl::IsFailedPrecondition(plan.status())) << plan.status();
      ++refused;
      continue;
    }
    const uint32_t usable = std::min(fit, spec.elastic().nodes().max());
    const uint32_t best = BestCount(world, usable);
    if (best == 0) {
      bool legal = false;
      for (uint32_t n = spec.elastic().nodes().min(); n <= usable; ++n) {
        legal = legal || IsLegal(world, n);
      }
      EXPECT_EQ(absl::IsInvalidArgument(plan.status()), !legal) << plan.status();
      EXPECT_EQ(absl::IsFailedPrecondition(plan.status()), legal) << plan.status();
      short_of_memory += legal;
      ++refused;
      continue;
    }
    ASSERT_TRUE(plan.ok()) << plan.status();
    ++planned;
    EXPECT_EQ(plan->nodes.size(), best);
    EXPECT_EQ(plan->nodes.size() + plan->spares.size(), world.nodes.size());
    for (const SpareNode& spare : plan->spares) EXPECT_FALSE(spare.reason.empty());
    spares += !plan->spares.empty();
    passed_over += plan->reason.find("has the memory") != std::string::npos;
    by_load += plan->reason.find("by recorded load") != std::string::npos;
    ExpectExpertsAreHeld(world, *plan);
    ExpectPlacesAreKept(world, *plan);

    std::shuffle(world.nodes.begin(), world.nodes.end(), dice.random());
    const auto again = PlanGeneration(world.Input());
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(MakeRankTable(spec, *plan).SerializeAsString(),
              MakeRankTable(spec, *again).SerializeAsString());
    EXPECT_EQ(plan->reason, again->reason);
  }
  // The draws reach every kind of answer.
  EXPECT_GT(planned, 1000);
  EXPECT_GT(refused, 300);
  EXPECT_GT(spares, 300);
  EXPECT_GT(by_load, 100);
  EXPECT_GT(short_of_memory, 10);
  EXPECT_GT(passed_over, 3);
}

// More nodes never make a step take more rounds.
TEST(PlannerProperty, MoreNodesNeverTakeMoreRounds) {
  for (unsigned seed = 1; seed <= 300; ++seed) {
    Dice dice(seed);
    World world = RandomWorld(dice);
    world.nodes.clear();
    int64_t rounds = INT64_MAX;
    for (uint32_t n = 1; n <= 9; ++n) {
      const uint32_t slots = world.spec.elastic().slots_per_node();
      world.nodes.push_back({"n" + std::to_string(n), slots, slots, 0});
      const auto plan = PlanGeneration(world.Input());
      if (!plan.ok()) continue;
      EXPECT_LE(plan->rounds, rounds) << "seed " << seed << ", " << n << " nodes";
      rounds = plan->rounds;
    }
  }
}

}  // namespace
}  // namespace moesaic
