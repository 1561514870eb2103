#include "parallel/layout/expert_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ExpertPlacementTest, EvenIsCompleteAndBalancedForEveryMesh) {
  for (int n = 1; n <= 8; ++n) {
    for (int ep = 1; ep <= n; ++ep) {
      if (n % ep != 0) continue;
      const Mesh mesh = Mesh::Flat(n, ep);
      for (int experts = 1; experts <= 9; ++experts) {
        const std::vector<int> layers{0, experts};
        const ExpertPlacement placement = ExpertPlacement::Even(mesh, layers);
        ASSERT_EQ(placement.layers(), 2);
        EXPECT_EQ(placement.experts(0), 0);
        std::vector<int> primaries(mesh.expert_groups(), 0);
        for (int e = 0; e < experts; ++e) {
          EXPECT_EQ(placement.holders(1, e).size(), static_cast<size_t>(mesh.expert_groups()));
          ++primaries[mesh.place(placement.primary(1, e)).expert_group];
          for (int r = 0; r < n; ++r) {
            const int to = placement.Destination(mesh, r, 1, e);
            EXPECT_EQ(mesh.place(to).expert_group, mesh.place(r).expert_group);
            EXPECT_TRUE(placement.Holds(to, 1, e));
          }
        }
        const auto [fewest, most] = std::minmax_element(primaries.begin(), primaries.end());
        EXPECT_LE(*most - *fewest, 1);
        for (int g = 0; g < mesh.expert_groups(); ++g) {
          std::vector<int> held;
          for (int rank : mesh.expert_ranks(g)) {
            const std::vector<int> mine = placement.ExpertsOf(rank, 1);
            EXPECT_GE(static_cast<int>(mine.size()), experts / ep);
            EXPECT_LE(static_cast<int>(mine.size()), (experts + ep - 1) / ep);
            held.insert(held.end(), mine.begin(), mine.end());
          }
          ASSERT_EQ(held.size(), static_cast<size_t>(experts));
          EXPECT_TRUE(std::is_sorted(held.begin(), held.end()));
          EXPECT_EQ(std::set<int>(held.begin(), held.end()).size(), held.size());
        }
      }
    }
  }
}

// Two nodes of two ranks, one expert group.
Mesh TwoNodes() {
  std::vector<RankPlace> places;
  for (int r = 0; r < 4; ++r) {
    places.push_back({.rank = r,
                      .node = r < 2 ? "a" : "b",
                      .local_rank = r % 2,
                      .data = r,
                      .expert_group = 0,
                      .expert = r});
  }
  return *Mesh::Create(std::move(places));
}

TEST(ExpertPlacementTest, SeveralHoldersInAGroupShareItsSources) {
  const Mesh mesh = TwoNodes();
  const absl::StatusOr<ExpertPlacement> placement =
      ExpertPlacement::Create(mesh, 7, {{{3, 1}, {0}, {3, 2}, {1, 2, 0}}});
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_EQ(placement->epoch(), 7u);
  EXPECT_EQ(placement->primary(0, 0), 3);
  EXPECT_THAT(placement->ExpertsOf(3, 0), ElementsAre(0, 2));
  const auto destinations = [&](int expert) {
    std::vector<int> to;
    for (int source = 0; source < 4; ++source) {
      to.push_back(placement->Destination(mesh, source, 0, expert));
    }
    return to;
  };
  EXPECT_THAT(destinations(0), ElementsAre(1, 1, 3, 3));  // on the own node
  EXPECT_THAT(destinations(1), ElementsAre(0, 0, 0, 0));  // the only one
  EXPECT_THAT(destinations(2), ElementsAre(2, 3, 2, 3));  // in turns, and at home
  EXPECT_THAT(destinations(3), ElementsAre(0, 1, 2, 2));
  EXPECT_FALSE(placement->SurvivesAnyNode(mesh));  // expert 1 is on one node only
  EXPECT_TRUE(ExpertPlacement::Create(mesh, 1, {{{3, 1}, {0, 2}}})->SurvivesAnyNode(mesh));
}

void ExpectRefused(std::vector<std::vector<std::vector<int>>> holders, const std::string& message) {
  const absl::Status status =
      ExpertPlacement::Create(Mesh::Flat(4, 2), 0, std::move(holders)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(ExpertPlacementTest, RefusesHolesAndDoubles) {
  ExpectRefused({{{0, 2}, {}}}, "layer 0 expert 1 has no holder");
  ExpectRefused({{}, {{0, 4}}}, "layer 1 expert 0 is held by rank 4");
  ExpectRefused({{{0, 2, 0}}}, "names rank 0 twice");
  ExpectRefused({{{0, 1}}}, "no holder in expert group 1");
}

}  // namespace
}  // namespace moesaic
