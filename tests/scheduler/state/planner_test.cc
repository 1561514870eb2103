#include "scheduler/state/planner.h"

#include <gtest/gtest.h>

#include "tests/scheduler/state/cluster_fixture.h"

namespace moesaic {
namespace {

TEST(Planner, NumbersRanksOverNodesByName) {
  const auto plan = PlanGeneration(SmallJob("a", 1, 4, 2), {{"n2", 2, 8}, {"n1", 2, 8}}, 7);
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
    const auto plan = PlanGeneration(spec, {{"n1", 8, 8}}, 1);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->mesh.expert_size(), degree) << experts << " experts";
  }
}

TEST(Planner, RefusesTooFewNodesAndSaysWhichAreTooSmall) {
  const auto plan = PlanGeneration(SmallJob("a", 2, 4, 2), {{"n1", 2, 2}, {"n2", 1, 1}}, 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(plan.status()));
  EXPECT_NE(plan.status().message().find("1 of at least 2 nodes"), std::string::npos)
      << plan.status();
  EXPECT_NE(plan.status().message().find("n2 has 1 slots"), std::string::npos) << plan.status();
}

TEST(Planner, OversubscribeUsesSmallNodes) {
  JobSpec spec = SmallJob("a", 1, 1, 4);
  EXPECT_FALSE(PlanGeneration(spec, {{"n1", 2, 2}}, 1).ok());
  spec.mutable_launch()->set_oversubscribe(true);
  const auto plan = PlanGeneration(spec, {{"n1", 2, 2}}, 1);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->mesh.size(), 4);
  EXPECT_EQ(plan->threads, 1u);
}

TEST(Planner, KeepsANodeSpareThatSavesNoRound) {
  JobSpec spec = SmallJob("a", 1, 3, 2);
  spec.mutable_train()->set_global_batch(4);  // four micro-batches: two nodes do them in one round
  const auto plan = PlanGeneration(spec, {{"n1", 2, 2}, {"n2", 2, 2}, {"n3", 2, 2}}, 1);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->nodes.size(), 2u);
  ASSERT_EQ(plan->spares.size(), 1u);
  EXPECT_EQ(plan->spares[0].id, "n3");
  EXPECT_NE(plan->spares[0].reason.find("rounds"), std::string::npos);
}

TEST(Planner, ExplicitExpertDegreeMustDivideTheRanks) {
  JobSpec spec = SmallJob("a", 1, 3, 2);
  spec.mutable_parallel()->set_expert(4);
  const std::vector<PlanNode> three = {{"n1", 2, 2}, {"n2", 2, 2}, {"n3", 2, 2}};
  const auto plan = PlanGeneration(spec, three, 1);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->mesh.size(), 4);  // six ranks would not do
  spec.mutable_parallel()->set_expert(5);
  EXPECT_TRUE(absl::IsInvalidArgument(PlanGeneration(spec, three, 1).status()));
}

TEST(Planner, RankTableHasEveryExpertOfEveryLayer) {
  const JobSpec spec = SmallJob("a", 1, 1, 4);
  const auto plan = PlanGeneration(spec, {{"n1", 4, 4}}, 3);
  ASSERT_TRUE(plan.ok());
  const RankTable table = MakeRankTable(spec, *plan);
  EXPECT_EQ(table.ranks_size(), 4);
  EXPECT_EQ(table.placement_size(), 2 * 6);
  EXPECT_EQ(table.placement_epoch(), 3u);
  for (const ExpertHolders& holders : table.placement()) EXPECT_GE(holders.ranks_size(), 1);
}

}  // namespace
}  // namespace moesaic
