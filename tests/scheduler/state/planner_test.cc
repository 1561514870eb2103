#include "scheduler/state/planner.h"

#include <gtest/gtest.h>

#include "tests/scheduler/state/cluster_fixture.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/catalog/sizing.h"

namespace moesaic {
namespace {

absl::StatusOr<GenerationPlan> Plan(const JobSpec& spec, std::vector<PlanNode> nodes,
                                    uint64_t epoch = 1, std::vector<std::string> previous = {}) {
  return PlanGeneration({.spec = &spec,
                         .nodes = std::move(nodes),
                         .placement_epoch = epoch,
                         .previous_nodes = std::move(previous)});
}

std::vector<std::string> Names(const GenerationPlan& plan) {
  std::vector<std::string> names;
  for (const PlanNode& node : plan.nodes) names.push_back(node.id);
  return names;
}

TEST(Planner, NumbersRanksOverNodesByName) {
  const auto plan = Plan(SmallJob("a", 1, 4, 2), {{"n2", 2, 8}, {"n1", 2, 8}}, 7);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->mesh.size(), 4);
  EXPECT_EQ(plan->mesh.place(0).node, "n1");
  EXPECT_EQ(plan->mesh.place(1).node, "n1");
  EXPECT_EQ(plan->mesh.place(3).node, "n2");
  EXPECT_EQ(plan->mesh.place(3).local_rank, 1);
  EXPECT_EQ(plan->threads, 4u);
  EXPECT_EQ(plan->placement.epoch(), 7u);
}

TEST(Planner, AutoExpertDegreeIsTheLargestDivisorOfTheRanks) {
  JobSpec spec = SmallJob("a", 1, 1, 8);
  for (const auto& [experts, degree] :
       std::vector<std::pair<int, int>>{{6, 4}, {8, 8}, {1, 1}, {3, 2}}) {
    spec.mutable_model()->mutable_moe()->set_experts(experts);
    const auto plan = Plan(spec, {{"n1", 8, 8}}, 1);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->mesh.expert_size(), degree) << experts << " experts";
  }
}

TEST(Planner, RefusesTooFewNodesAndSaysWhichAreTooSmall) {
  const auto plan = Plan(SmallJob("a", 2, 4, 2), {{"n1", 2, 2}, {"n2", 1, 1}}, 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(plan.status()));
  EXPECT_NE(plan.status().message().find("1 of at least 2 nodes"), std::string::npos)
      << plan.status();
  EXPECT_NE(plan.status().message().find("n2 has 1 slots"), std::string::npos) << plan.status();
}

TEST(Planner, OversubscribeUsesSmallNodes) {
  JobSpec spec = SmallJob("a", 1, 1, 4);
  EXPECT_FALSE(Plan(spec, {{"n1", 2, 2}}, 1).ok());
  spec.mutable_launch()->set_oversubscribe(true);
  const auto plan = Plan(spec, {{"n1", 2, 2}}, 1);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->mesh.size(), 4);
  EXPECT_EQ(plan->threads, 1u);
}

TEST(Planner, KeepsANodeSpareThatSavesNoRound) {
  JobSpec spec = SmallJob("a", 1, 3, 2);
  spec.mutable_train()->set_global_batch(4);  // four micro-batches: two nodes do them in one round
  const auto plan = Plan(spec, {{"n1", 2, 2}, {"n2", 2, 2}, {"n3", 2, 2}}, 1);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->nodes.size(), 2u);
  ASSERT_EQ(plan->spares.size(), 1u);
  EXPECT_EQ(plan->spares[0].id, "n3");
  EXPECT_NE(plan->spares[0].reason.find("rounds"), std::string::npos);
}

TEST(Planner, SurvivingNodesKeepTheirPlacesAndNewcomersFillTheGaps) {
  JobSpec spec = SmallJob("a", 1, 4, 1);
  const std::vector<PlanNode> nodes = {{"n1", 1, 1}, {"n3", 1, 1}, {"n9", 1, 1}, {"n0", 1, 1}};
  auto plan = Plan(spec, nodes, 2, {"n3", "n2", "n9"});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Names(*plan), (std::vector<std::string>{"n3", "n0", "n9", "n1"}));
  // With room for two, the survivors come first.
  spec.mutable_elastic()->mutable_nodes()->set_max(2);
  plan = Plan(spec, nodes, 2, {"n2", "n3", "n9"});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Names(*plan), (std::vector<std::string>{"n9", "n3"}));
  ASSERT_EQ(plan->spares.size(), 2u);
  EXPECT_EQ(plan->spares[0].id, "n0");
  EXPECT_NE(plan->spares[0].reason.find("at most 2 nodes"), std::string::npos);
}

TEST(Planner, ResizeWinsOverTheJobsRange) {
  const JobSpec spec = SmallJob("a", 2, 2, 1);
  PlanInput input{.spec = &spec, .nodes = {{"n1", 1, 1}, {"n2", 1, 1}, {"n3", 1, 1}, {"n4", 1, 1}}};
  input.min_nodes = input.max_nodes = 4;
  auto plan = PlanGeneration(input);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->nodes.size(), 4u);
  input.nodes.pop_back();
  EXPECT_TRUE(absl::IsFailedPrecondition(PlanGeneration(input).status()));
}

TEST(Planner, ExplicitExpertDegreeMustDivideTheRanks) {
  JobSpec spec = SmallJob("a", 1, 3, 2);
  spec.mutable_parallel()->set_expert(4);
  const std::vector<PlanNode> three = {{"n1", 2, 2}, {"n2", 2, 2}, {"n3", 2, 2}};
  const auto plan = Plan(spec, three, 1);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->mesh.size(), 4);  // six ranks would not do
  spec.mutable_parallel()->set_expert(5);
  EXPECT_TRUE(absl::IsInvalidArgument(Plan(spec, three, 1).status()));
}

// One job's state after steps on `from`: a load that is far from even, and where its experts lay.
TrainingState StateAfter(const JobSpec& spec, const GenerationPlan& from) {
  TrainingState state;
  for (int layer = 0; layer < 2; ++layer) {
    RecordExpertCounts(layer, std::vector<double>{60, 40, 6, 6, 6, 6}, &state);
  }
  *state.mutable_placement() = StorePlacement(spec, from.mesh, from.placement);
  return state;
}

TEST(Planner, ANewShapePlacesExpertsByLoadAndTheSameShapeKeepsThem) {
  const JobSpec spec = SmallJob("a", 1, 3, 1);
  const std::vector<PlanNode> three = {{"n1", 1, 1}, {"n2", 1, 1}, {"n3", 1, 1}};
  const auto first = PlanGeneration({.spec = &spec, .nodes = {three[0], three[1]}});
  ASSERT_TRUE(first.ok()) << first.status();
  const TrainingState state = StateAfter(spec, *first);

  const auto grown = PlanGeneration({.spec = &spec, .nodes = three, .restored = &state});
  ASSERT_TRUE(grown.ok()) << grown.status();
  EXPECT_LT(grown->imbalance, 1.5);  // 60 of a mean of 41; by number 100
  EXPECT_EQ(grown->placement.ExpertsOf(grown->placement.holders(0, 0)[0], 0),
            (std::vector<int>{0}));
  EXPECT_NE(grown->reason.find("by recorded load"), std::string::npos) << grown->reason;

  const auto again =
      PlanGeneration({.spec = &spec, .nodes = {{"n7", 1, 1}, {"n2", 1, 1}}, .restored = &state});
  ASSERT_TRUE(again.ok()) << again.status();
  for (int e = 0; e < 6; ++e) {
    EXPECT_EQ(again->placement.primary(1, e), first->placement.primary(1, e)) << e;
  }
  EXPECT_NE(again->reason.find("stay"), std::string::npos) << again->reason;
}

TEST(Planner, CopiesLetEveryExpertSurviveANode) {
  JobSpec spec = SmallJob("a", 2, 2, 1);
  const std::vector<PlanNode> two = {{"n1", 1, 1}, {"n2", 1, 1}};
  auto plan = Plan(spec, two);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_FALSE(plan->survives_any_node);
  spec.mutable_parallel()->set_expert_copies(3);  // two ranks, six experts: all on both
  plan = Plan(spec, two);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->survives_any_node);
  EXPECT_TRUE(plan->placement.SurvivesAnyNode(plan->mesh));
}

TEST(Planner, ExpertsMoveWhereTheShapeStaysWhenAskedTo) {
  const JobSpec spec = SmallJob("a", 1, 2, 1);
  const std::vector<PlanNode> two = {{"n1", 1, 1}, {"n2", 1, 1}};
  const auto first = PlanGeneration({.spec = &spec, .nodes = two});
  ASSERT_TRUE(first.ok()) << first.status();
  const TrainingState state = StateAfter(spec, *first);
  const auto stay = PlanGeneration({.spec = &spec, .nodes = two, .restored = &state});
  const auto move =
      PlanGeneration({.spec = &spec, .nodes = two, .restored = &state, .move_experts = true});
  ASSERT_TRUE(stay.ok() && move.ok());
  EXPECT_TRUE(stay->kept_placement);
  EXPECT_FALSE(move->kept_placement);
  EXPECT_NEAR(stay->imbalance, 106.0 / 62, 1e-9);
  EXPECT_LT(move->imbalance, 1.2);
}

// A job whose experts are nearly all of its memory, and what one rank of a layout needs.
JobSpec JobOfExperts() {
  JobSpec spec = SmallJob("a", 1, 16, 1);
  spec.mutable_model()->mutable_moe()->set_experts(8);
  spec.mutable_model()->mutable_moe()->set_expert_width(4096);
  spec.mutable_train()->set_global_batch(110);
  return spec;
}
std::vector<PlanNode> NodesOf(int count, uint64_t memory_mib) {
  std::vector<PlanNode> nodes;
  for (int i = 0; i < count; ++i) {
    nodes.push_back({"n" + std::string(1, static_cast<char>('a' + i)), 1, 1, memory_mib << 20});
  }
  return nodes;
}

TEST(Planner, APrimeNumberOfRanksSharesTheExpertsWhereThereAreAsMany) {
  const auto plan = Plan(JobOfExperts(), NodesOf(7, 0));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->mesh.expert_size(), 7);  // eight experts on seven ranks
}

TEST(Planner, ElevenRanksHoldAllExpertsEachAndThePlanSaysWhy) {
  const auto plan = Plan(JobOfExperts(), NodesOf(11, 0));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->mesh.size(), 11);
  EXPECT_EQ(plan->mesh.expert_size(), 1);
  EXPECT_NE(plan->reason.find("every rank holds all 8 experts, because 11 ranks have no divisor "
                              "from 2 to 8"),
            std::string::npos)
      << plan->reason;
}

TEST(Planner, TooLittleMemoryForAllExpertsLeavesANodeSpareForALargerDegree) {
  const auto plan = Plan(JobOfExperts(), NodesOf(11, 64));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->mesh.size(), 10);
  EXPECT_EQ(plan->mesh.expert_size(), 5);
  ASSERT_EQ(plan->spares.size(), 1u);
  EXPECT_NE(plan->spares[0].reason.find("on 11 nodes, with expert degree 1, n"), std::string::npos)
      << plan->spares[0].reason;
  EXPECT_NE(plan->spares[0].reason.find("MiB"), std::string::npos);
  EXPECT_NE(plan->reason.find("has the memory"), std::string::npos) << plan->reason;
}

TEST(Planner, RefusesWithTheNumbersWhereNoDegreeFits) {
  JobSpec spec = JobOfExperts();
  auto plan = Plan(spec, NodesOf(3, 8));
  EXPECT_TRUE(absl::IsFailedPrecondition(plan.status())) << plan.status();
  for (const char* part : {"too little memory", "on 3 nodes, with expert degree 3",
                           "would need about", "may use 7 MiB", "more nodes"}) {
    EXPECT_NE(plan.status().message().find(part), std::string::npos) << plan.status();
  }
  // A degree that is asked for is not changed.
  spec.mutable_parallel()->set_expert(1);
  plan = Plan(spec, NodesOf(10, 40));
  EXPECT_TRUE(absl::IsFailedPrecondition(plan.status())) << plan.status();
  EXPECT_NE(plan.status().message().find("a larger parallel.expert"), std::string::npos);
}

// A job of large dense layers and small experts needs more while its experts are made than later.
TEST(Planner, ASpawnThatIsAheadNeedsItsMemory) {
  JobSpec spec = SmallJob("a", 1, 1, 1);
  spec.mutable_model()->set_vocabulary(1 << 16);
  spec.mutable_recipe()->mutable_experts()->mutable_spawn()->set_step(5);
  const auto plan = Plan(spec, NodesOf(1, 0));
  ASSERT_TRUE(plan.ok()) << plan.status();
  const CatalogsAhead catalogs = *BuildCatalogsAhead(spec, 0);
  const ExpertLoad even;
  const NodeMemory node = SizeJob({.spec = &spec,
                                   .catalog = &catalogs.all,
                                   .mesh = &plan->mesh,
                                   .placement = &plan->placement,
                                   .load = &even,
                                   .before_spawn = &*catalogs.before_spawn})
                              .nodes.front();
  ASSERT_GT(node.until_spawn, node.steady());
  const auto needs = [](int64_t bytes) { return static_cast<uint64_t>(1 + 10 * bytes / 9); };
  PlanInput input = {.spec = &spec, .nodes = NodesOf(1, 0)};
  input.nodes[0].memory_bytes = needs(node.steady());
  const absl::Status refused = PlanGeneration(input).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  TrainingState state;
  input.restored = &state;
  for (const auto& [step, ahead] : {std::pair(4u, true), {5u, false}, {6u, false}}) {
    state.set_step(step);
    EXPECT_EQ(PlanGeneration(input).ok(), !ahead) << step;
  }
  input.restored = nullptr;
  input.nodes[0].memory_bytes = needs(node.until_spawn);
  EXPECT_TRUE(PlanGeneration(input).ok()) << PlanGeneration(input).status();
}

TEST(Planner, RankTableHasEveryExpertOfEveryLayer) {
  const JobSpec spec = SmallJob("a", 1, 1, 4);
  const auto plan = Plan(spec, {{"n1", 4, 4}}, 3);
  ASSERT_TRUE(plan.ok());
  const RankTable table = MakeRankTable(spec, *plan);
  EXPECT_EQ(table.ranks_size(), 4);
  EXPECT_EQ(table.placement_size(), 2 * 6);
  EXPECT_EQ(table.placement_epoch(), 3u);
  for (const ExpertHolders& holders : table.placement()) EXPECT_GE(holders.ranks_size(), 1);
}

}  // namespace
}  // namespace moesaic
