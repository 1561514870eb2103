#include "parallel/layout/balanced_placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>

namespace moesaic {
namespace {

// `slots` consecutive ranks a node, groups of `degree` consecutive ranks.
Mesh Nodes(int nodes, int slots, int degree) {
  std::vector<RankPlace> places;
  for (int r = 0; r < nodes * slots; ++r) {
    places.push_back({.rank = r,
                      .node = "n" + std::to_string(r / slots),
                      .local_rank = r % slots,
                      .data = r,
                      .expert_group = r / degree,
                      .expert = r % degree});
  }
  return *Mesh::Create(std::move(places));
}

std::vector<std::vector<std::vector<int>>> HoldersOf(const ExpertPlacement& placement) {
  std::vector<std::vector<std::vector<int>>> all(placement.layers());
  for (int layer = 0; layer < placement.layers(); ++layer) {
    for (int e = 0; e < placement.experts(layer); ++e) {
      const auto holders = placement.holders(layer, e);
      all[layer].emplace_back(holders.begin(), holders.end());
    }
  }
  return all;
}

TEST(BalancedPlacement, PutsTheBusiestExpertAlone) {
  const Mesh mesh = Nodes(1, 2, 2);
  const std::vector<int> experts{4};
  const ExpertLoad load{{60, 20, 10, 10}};
  const ExpertPlacement placement =
      BalancedPlacement({.mesh = &mesh, .experts = experts, .load = &load});
  EXPECT_EQ(placement.ExpertsOf(0, 0), (std::vector<int>{0}));
  EXPECT_EQ(placement.ExpertsOf(1, 0), (std::vector<int>{1, 2, 3}));
  EXPECT_DOUBLE_EQ(ExpectedImbalance(mesh, placement, load), 60.0 / 50.0);
  EXPECT_DOUBLE_EQ(ExpectedImbalance(mesh, ExpertPlacement::Even(mesh, experts), load), 80.0 / 50);
}

TEST(BalancedPlacement, CopiesTheBusiestExpertToAnotherNode) {
  const Mesh mesh = Nodes(2, 1, 2);
  const std::vector<int> experts{4};
  const ExpertLoad load{{70, 10, 10, 10}};
  const ExpertPlacement placement =
      BalancedPlacement({.mesh = &mesh, .experts = experts, .load = &load, .copies = 2});
  EXPECT_EQ(placement.holders(0, 0).size(), 2u);
  EXPECT_LT(ExpectedImbalance(mesh, placement, load), 1.11);
}

TEST(BalancedPlacement, CopiesFirstMakeEveryExpertSurviveANode) {
  const Mesh mesh = Nodes(2, 2, 4);  // one group over both nodes
  const std::vector<int> experts{8, 0, 8};
  const ExpertLoad uniform;
  EXPECT_FALSE(BalancedPlacement({.mesh = &mesh, .experts = experts, .load = &uniform})
                   .SurvivesAnyNode(mesh));
  EXPECT_TRUE(BalancedPlacement({.mesh = &mesh, .experts = experts, .load = &uniform, .copies = 2})
                  .SurvivesAnyNode(mesh));
}

TEST(BalancedPlacement, GroupsOnSeveralNodesSurviveANodeByThemselves) {
  const ExpertLoad uniform;
  for (const auto& [nodes, slots, degree] : std::vector<std::array<int, 3>>{
           {3, 2, 3}, {2, 2, 2}, {2, 6, 4}, {2, 4, 1}, {5, 2, 5}, {2, 3, 2}}) {
    const Mesh mesh = Nodes(nodes, slots, degree);
    const std::vector<int> experts{7};
    EXPECT_TRUE(BalancedPlacement({.mesh = &mesh, .experts = experts, .load = &uniform})
                    .SurvivesAnyNode(mesh))
        << nodes << " nodes of " << slots << ", groups of " << degree;
  }
}

TEST(BalancedPlacement, HoldsItsPromisesForRandomMeshesAndLoads) {
  std::mt19937 random(7);
  const auto draw = [&](int low, int high) {
    return low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
  };
  for (int trial = 0; trial < 400; ++trial) {
    const int degree = draw(1, 6), groups = draw(1, 3);
    int slots = draw(1, 4);
    while (degree * groups % slots != 0) --slots;
    const Mesh mesh = Nodes(degree * groups / slots, slots, degree);
    std::vector<int> experts(draw(1, 5));
    ExpertLoad load(experts.size());
    for (size_t layer = 0; layer < experts.size(); ++layer) {
      experts[layer] = draw(0, 3) == 0 ? 0 : draw(1, 12);
      for (int e = 0; e < experts[layer]; ++e) load[layer].push_back(std::pow(draw(0, 10), 3));
    }
    const int copies = draw(0, 2);
    const BalanceInput input{
        .mesh = &mesh, .experts = experts, .load = &load, .copies = copies, .epoch = 3};
    const ExpertPlacement placement = BalancedPlacement(input);  // complete, or it would not return
    EXPECT_EQ(HoldersOf(placement), HoldersOf(BalancedPlacement(input)));

    std::vector<int> held(mesh.size(), 0);
    int64_t total = 0, layers = 0;
    for (int layer = 0; layer < placement.layers(); ++layer) {
      total += experts[layer];
      layers += experts[layer] > 0;
      for (int rank = 0; rank < mesh.size(); ++rank) {
        held[rank] += static_cast<int>(placement.ExpertsOf(rank, layer).size());
      }
      const std::vector<double> tokens = ExpectedTokens(mesh, placement, layer, load);
      EXPECT_NEAR(std::accumulate(tokens.begin(), tokens.end(), 0.0),
                  std::accumulate(load[layer].begin(), load[layer].end(), 0.0), 1e-6);
    }
    if (groups > 1 && mesh.place(mesh.size() - 1).node != "n0") {
      EXPECT_TRUE(placement.SurvivesAnyNode(mesh));
    }
    const int64_t most = (total + degree - 1) / degree + 1 + layers * copies;
    EXPECT_LE(*std::max_element(held.begin(), held.end()), most);
    EXPECT_GE(ExpectedImbalance(mesh, placement, load), 1.0 - 1e-9);
  }
}

}  // namespace
}  // namespace moesaic
