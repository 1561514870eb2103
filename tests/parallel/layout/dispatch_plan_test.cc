#include "parallel/layout/dispatch_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace moesaic {
namespace {

constexpr int kOneLayer[] = {0};

// The plans of one expert group for random counts, and the invariants they must keep together.
struct Round {
  Mesh mesh;
  ExpertPlacement placement;
  std::vector<int64_t> counts;
  std::vector<int64_t> micro_batches;
  std::vector<DispatchPlan> plans;  // by rank of the expert communicator
};

Round MakeRound(const Mesh& mesh, const ExpertPlacement& placement, int group,
                std::mt19937& random) {
  Round round{mesh, placement, {}, {}, {}};
  const int experts = placement.experts(0);
  for (int s = 0; s < mesh.expert_size(); ++s) {
    const bool idle = random() % 4 == 0;
    round.micro_batches.push_back(idle ? -1 : 10 + s);
    for (int e = 0; e < experts; ++e) {
      round.counts.push_back(idle || random() % 3 == 0 ? 0 : static_cast<int64_t>(random() % 7));
    }
  }
  for (int rank : mesh.expert_ranks(group)) {
    round.plans.push_back(PlanDispatch({.mesh = &round.mesh,
                                        .placement = &round.placement,
                                        .rank = rank,
                                        .layers = kOneLayer,
                                        .counts = round.counts,
                                        .micro_batches = round.micro_batches}));
  }
  return round;
}

// The ranges tile [0, rows).
void ExpectTiles(std::vector<RowRange> ranges, int64_t rows) {
  std::sort(ranges.begin(), ranges.end(),
            [](const RowRange& a, const RowRange& b) { return a.begin < b.begin; });
  int64_t at = 0;
  for (const RowRange& range : ranges) {
    EXPECT_EQ(range.begin, at);
    EXPECT_GT(range.rows, 0);
    at += range.rows;
  }
  EXPECT_EQ(at, rows);
}

void ExpectSegments(const Round& round, int me, int rank) {
  const DispatchPlan& plan = round.plans[me];
  const int sources = round.mesh.expert_size();
  const std::vector<int> held = round.placement.ExpertsOf(rank, 0);
  ASSERT_EQ(plan.segments.size(), held.size() * sources);
  ASSERT_EQ(plan.experts.size(), held.size());
  int64_t at = 0;
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const Segment& segment = plan.segments[i];
    EXPECT_EQ(segment.expert, held[i / sources]);
    EXPECT_EQ(segment.source, static_cast<int>(i % sources));
    EXPECT_EQ(segment.micro_batch, round.micro_batches[segment.source]);
    EXPECT_EQ(segment.rows.begin, at);
    if (i % sources == 0) {
      EXPECT_EQ(plan.experts[i / sources].rows.begin, at);
    }
    at += segment.rows.rows;
    if (i % sources + 1 == static_cast<size_t>(sources)) {
      const RowRange& rows = plan.experts[i / sources].rows;
      EXPECT_EQ(plan.experts[i / sources].expert, segment.expert);
      EXPECT_EQ(rows.begin + rows.rows, at);
    }
  }
  EXPECT_EQ(at, plan.receive_rows);
}

void ExpectInvariants(const Round& round, int group) {
  const int sources = round.mesh.expert_size();
  const int experts = round.placement.experts(0);
  int64_t sent = 0, received = 0, counted = 0;
  for (int64_t rows : round.counts) counted += rows;
  for (int me = 0; me < sources; ++me) {
    const DispatchPlan& plan = round.plans[me];
    sent += plan.send_rows;
    received += plan.receive_rows;
    std::vector<RowRange> out, in;
    for (int s = 0; s < sources; ++s) {
      out.insert(out.end(), plan.send[s].begin(), plan.send[s].end());
      in.insert(in.end(), plan.receive[s].begin(), plan.receive[s].end());
      const std::vector<RowRange>& theirs = round.plans[s].send[me];
      ASSERT_EQ(plan.receive[s].size(), theirs.size());
      for (size_t k = 0; k < theirs.size(); ++k) {
        EXPECT_EQ(plan.receive[s][k].rows, theirs[k].rows);
      }
    }
    ExpectTiles(out, plan.send_rows);
    ExpectTiles(in, plan.receive_rows);
    ExpectSegments(round, me, round.mesh.expert_ranks(group)[me]);
  }
  EXPECT_EQ(sent, counted);
  EXPECT_EQ(received, counted);
  // Every (source, expert) lands in exactly one segment with all its rows.
  for (int s = 0; s < sources; ++s) {
    for (int e = 0; e < experts; ++e) {
      int64_t rows = 0;
      for (const DispatchPlan& plan : round.plans) {
        for (const Segment& segment : plan.segments) {
          if (segment.source == s && segment.expert == e) rows += segment.rows.rows;
        }
      }
      EXPECT_EQ(rows, round.counts[s * experts + e]);
    }
  }
}

TEST(DispatchPlanTest, InvariantsHoldForEveryMeshAndExpertCount) {
  std::mt19937 random(3);
  for (int n = 1; n <= 8; ++n) {
    for (int ep = 1; ep <= n; ++ep) {
      if (n % ep != 0) continue;
      const Mesh mesh = Mesh::Flat(n, ep);
      for (int experts = 1; experts <= 9; ++experts) {
        const std::vector<int> layers{experts};
        const ExpertPlacement placement = ExpertPlacement::Even(mesh, layers);
        for (int group = 0; group < mesh.expert_groups(); ++group) {
          ExpectInvariants(MakeRound(mesh, placement, group, random), group);
        }
      }
    }
  }
}

TEST(DispatchPlanTest, InvariantsHoldForRandomPlacementsWithSeveralHolders) {
  std::mt19937 random(4);
  const Mesh mesh = Mesh::Flat(8, 4);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<std::vector<int>> holders(1 + random() % 9);
    for (std::vector<int>& ranks : holders) {
      for (int g = 0; g < 2; ++g) {
        const int first = static_cast<int>(random() % 4);
        ranks.push_back(4 * g + first);
        if (random() % 2 == 0) ranks.push_back(4 * g + (first + 1) % 4);
      }
    }
    const absl::StatusOr<ExpertPlacement> placement = ExpertPlacement::Create(mesh, 1, {holders});
    ASSERT_TRUE(placement.ok()) << placement.status();
    for (int group = 0; group < 2; ++group) {
      ExpectInvariants(MakeRound(mesh, *placement, group, random), group);
    }
  }
}

TEST(DispatchPlanTest, RowsOfAnExpertAreContiguousAndOrderedBySource) {
  const Mesh mesh = Mesh::Flat(2, 2);
  const std::vector<int> layers{3};
  const ExpertPlacement placement = ExpertPlacement::Even(mesh, layers);  // {0, 1} and {2}
  const std::vector<int64_t> counts{2, 0, 5, 1, 4, 3};
  const std::vector<int64_t> micro_batches{6, 7};
  const DispatchPlan plan = PlanDispatch({.mesh = &mesh,
                                          .placement = &placement,
                                          .rank = 0,
                                          .layers = kOneLayer,
                                          .counts = counts,
                                          .micro_batches = micro_batches});
  EXPECT_EQ(plan.send[0], (std::vector<RowRange>{{0, 2}}));
  EXPECT_EQ(plan.send[1], (std::vector<RowRange>{{2, 5}}));
  EXPECT_EQ(plan.receive[0], (std::vector<RowRange>{{0, 2}}));
  EXPECT_EQ(plan.receive[1], (std::vector<RowRange>{{2, 1}, {3, 4}}));
  EXPECT_EQ(plan.experts[0].rows, (RowRange{0, 3}));
  EXPECT_EQ(plan.experts[1].rows, (RowRange{3, 4}));
  EXPECT_EQ(plan.segments[2].rows, (RowRange{3, 0}));  // expert 1 from source 0
  EXPECT_EQ(plan.segments[3].micro_batch, 7);
}

// REX: experts of several layers are planned as if they were one layer's.
TEST(DispatchPlanTest, APoolOfLayersIsPlannedAsOneLayer) {
  std::mt19937 random(5);
  const Mesh mesh = Mesh::Flat(4, 2);
  for (int trial = 0; trial < 100; ++trial) {
    std::vector<std::vector<std::vector<int>>> by_layer(3);  // the pool is layers 0 and 2
    for (std::vector<std::vector<int>>& layer : by_layer) {
      layer.resize(1 + random() % 5);
      for (std::vector<int>& ranks : layer) {
        ranks = {static_cast<int>(random() % 2), 2 + static_cast<int>(random() % 2)};
      }
    }
    std::vector<std::vector<int>> flat = by_layer[0];
    flat.insert(flat.end(), by_layer[2].begin(), by_layer[2].end());
    const auto pooled = *ExpertPlacement::Create(mesh, 1, by_layer);
    const auto whole = *ExpertPlacement::Create(mesh, 1, {flat});
    std::vector<int64_t> counts(2 * flat.size());
    for (int64_t& count : counts) count = static_cast<int64_t>(random() % 5);
    const std::vector<int64_t> micro_batches{0, 1};
    for (int rank = 0; rank < mesh.size(); ++rank) {
      const std::vector<int> layers{0, 2};
      const DispatchPlan a =
          PlanDispatch({&mesh, &pooled, rank, layers, counts, micro_batches});
      const DispatchPlan b =
          PlanDispatch({&mesh, &whole, rank, kOneLayer, counts, micro_batches});
      EXPECT_EQ(a.send, b.send);
      EXPECT_EQ(a.receive, b.receive);
      EXPECT_EQ(a.send_rows, b.send_rows);
      EXPECT_EQ(a.receive_rows, b.receive_rows);
      ASSERT_EQ(a.segments.size(), b.segments.size());
      for (size_t i = 0; i < a.segments.size(); ++i) {
        EXPECT_EQ(a.segments[i].expert, b.segments[i].expert);
        EXPECT_EQ(a.segments[i].rows, b.segments[i].rows);
      }
      ASSERT_EQ(a.experts.size(), b.experts.size());
      for (size_t i = 0; i < a.experts.size(); ++i) {
        EXPECT_EQ(a.experts[i].expert, b.experts[i].expert);
        EXPECT_EQ(a.experts[i].rows, b.experts[i].rows);
      }
    }
  }
}

TEST(DispatchPlanDeathTest, CountsOfAnotherLayerAbort) {
  const Mesh mesh = Mesh::Flat(2, 2);
  const std::vector<int> layers{3};
  const ExpertPlacement placement = ExpertPlacement::Even(mesh, layers);
  const std::vector<int64_t> counts(4), micro_batches(2);
  EXPECT_DEATH(PlanDispatch({.mesh = &mesh,
                             .placement = &placement,
                             .layers = kOneLayer,
                             .counts = counts,
                             .micro_batches = micro_batches}),
               "need 6 counts and 2 micro-batches, given 4 and 2");
}

}  // namespace
}  // namespace moesaic
