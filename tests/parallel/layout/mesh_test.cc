#include "parallel/layout/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moesaic {
namespace {

using ::testing::HasSubstr;

TEST(MeshTest, FlatFoldsExpertGroupsIntoDataRanks) {
  for (int n = 1; n <= 8; ++n) {
    for (int ep = 1; ep <= n; ++ep) {
      if (n % ep != 0) continue;
      const Mesh mesh = Mesh::Flat(n, ep);
      ASSERT_EQ(mesh.size(), n);
      EXPECT_EQ(mesh.expert_size(), ep);
      EXPECT_EQ(mesh.expert_groups(), n / ep);
      for (int r = 0; r < n; ++r) {
        EXPECT_EQ(mesh.data_ranks()[mesh.place(r).data], r);
        EXPECT_EQ(mesh.expert_ranks(mesh.place(r).expert_group)[mesh.place(r).expert], r);
      }
    }
  }
}

TEST(MeshTest, KeepsTheTableWhateverItsOrder) {
  const absl::StatusOr<Mesh> mesh = Mesh::Create({
      {.rank = 2, .node = "b", .data = 0, .expert_group = 0, .expert = 1},
      {.rank = 0, .node = "a", .data = 3, .expert_group = 1, .expert = 0},
      {.rank = 3, .node = "b", .data = 1, .expert_group = 1, .expert = 1},
      {.rank = 1, .node = "a", .data = 2, .expert_group = 0, .expert = 0},
  });
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  EXPECT_THAT(mesh->data_ranks(), ::testing::ElementsAre(2, 3, 1, 0));
  EXPECT_THAT(mesh->expert_ranks(0), ::testing::ElementsAre(1, 2));
  EXPECT_THAT(mesh->expert_ranks(1), ::testing::ElementsAre(0, 3));
  EXPECT_EQ(mesh->place(2).node, "b");
  const std::vector<int> some{3, 0};
  EXPECT_THAT(mesh->DataOf(some), ::testing::ElementsAre(1, 3));
}

void ExpectRefused(std::vector<RankPlace> places, const std::string& message) {
  const absl::Status status = Mesh::Create(std::move(places)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(MeshTest, RefusesBrokenTables) {
  ExpectRefused({}, "empty");
  ExpectRefused({{.rank = 0}, {.rank = 2, .data = 1, .expert = 1}}, "rank 2 stands where 1");
  ExpectRefused({{.rank = 0}, {.rank = 1, .data = 0, .expert = 1}},
                "ranks 0 and 1 both have data coordinate 0");
  ExpectRefused({{.rank = 0}, {.rank = 1, .data = 2, .expert = 1}}, "data coordinate 2");
  ExpectRefused({{.rank = 0}, {.rank = 1, .data = 1, .expert = 0}},
                "both have expert group 0 expert coordinate 0");
  ExpectRefused(
      {{.rank = 0}, {.rank = 1, .data = 1, .expert = 1}, {.rank = 2, .data = 2, .expert_group = 1}},
      "cannot form 2 expert groups");
  ExpectRefused({{.rank = 0},
                 {.rank = 1, .data = 1, .expert = 1},
                 {.rank = 2, .data = 2, .expert = 2},
                 {.rank = 3, .data = 3, .expert_group = 1}},
                "expert group 0 expert coordinate 2");
  ExpectRefused({{.rank = 0, .expert_group = -1}, {.rank = 1, .data = 1}}, "expert group -1");
}

}  // namespace
}  // namespace moesaic
