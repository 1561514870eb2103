#include "parallel/expert/token_exchange.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "parallel/comm/in_process.h"

namespace moesaic {
namespace {

constexpr int kOneLayer[] = {0};

constexpr int64_t kWidth = 3;

// What row `row` of rank `source` holds in the column that is tested: exact in bfloat16.
double Mark(int source, int64_t row) { return source * 32 + row % 32; }

struct Layout {
  int ranks;
  int experts;
  at::ScalarType type;
};

// Rows of rank `source` for expert `expert`; every third rank has none at all.
std::vector<int64_t> Counts(int source, int experts) {
  std::mt19937 random(source * 101 + experts);
  std::vector<int64_t> counts;
  for (int e = 0; e < experts; ++e) {
    counts.push_back(source % 3 == 2 || random() % 3 == 0 ? 0 : random() % 6);
  }
  return counts;
}

at::Tensor SortedRows(int source, const std::vector<int64_t>& counts, at::ScalarType type) {
  int64_t rows = 0;
  for (int64_t count : counts) rows += count;
  at::Tensor sorted = at::empty({rows, kWidth}, at::kDouble);
  for (int64_t r = 0; r < rows; ++r) sorted[r].fill_(Mark(source, r));
  return sorted.to(type);
}

// Checks each received row against where it must have come from.
void ExpectReceived(const at::Tensor& received, const DispatchPlan& plan,
                    const std::vector<int64_t>& all_counts, int experts) {
  for (const Segment& segment : plan.segments) {
    const int64_t* counts = all_counts.data() + segment.source * experts;
    int64_t first = 0;
    for (int e = 0; e < segment.expert; ++e) first += counts[e];
    ASSERT_EQ(segment.rows.rows, counts[segment.expert]);
    for (int64_t k = 0; k < segment.rows.rows; ++k) {
      const at::Tensor row = received[segment.rows.begin + k].to(at::kDouble);
      EXPECT_TRUE(at::equal(row, at::full_like(row, Mark(segment.source, first + k))));
    }
  }
}

void RoundTrip(Communicator& group, const Layout& layout) {
  const Mesh mesh = Mesh::Flat(layout.ranks, layout.ranks);
  const std::vector<int> layers{layout.experts};
  const ExpertPlacement placement = ExpertPlacement::Even(mesh, layers);
  const std::unique_ptr<TokenExchange> exchange = *MakeTokenExchange("flat", &group);
  EXPECT_EQ(exchange->Name(), "flat");
  const std::vector<int64_t> mine = Counts(group.rank(), layout.experts);
  const std::vector<int64_t> counts = exchange->ShareCounts(mine);
  for (int s = 0; s < layout.ranks; ++s) {
    const std::vector<int64_t> theirs = Counts(s, layout.experts);
    ASSERT_TRUE(std::equal(theirs.begin(), theirs.end(), counts.begin() + s * layout.experts));
  }
  const std::vector<int64_t> micro_batches(layout.ranks, 0);
  const DispatchPlan plan = PlanDispatch({.mesh = &mesh,
                                          .placement = &placement,
                                          .rank = group.rank(),
                                          .layers = kOneLayer,
                                          .counts = counts,
                                          .micro_batches = micro_batches});
  const at::Tensor sorted = SortedRows(group.rank(), mine, layout.type);
  const at::Tensor received = exchange->Dispatch(sorted, plan);
  ASSERT_EQ(received.sizes(), at::IntArrayRef({plan.receive_rows, kWidth}));
  EXPECT_EQ(received.scalar_type(), layout.type);
  ExpectReceived(received, plan, counts, layout.experts);
  const at::Tensor back = exchange->Return(received * 2, plan);
  EXPECT_TRUE(at::equal(back, sorted * 2));
}

TEST(FlatExchangeTest, RowsArriveInHolderOrderAndReturn) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (int experts : {3, 5, 8}) {
      for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        RunRanks(ranks, [&](Communicator& group) { RoundTrip(group, {ranks, experts, type}); });
      }
    }
  }
}

TEST(FlatExchangeTest, RowsThatDoNotFitThePlanAreRefused) {
  RunRanks(1, [](Communicator& group) {
    const std::unique_ptr<TokenExchange> exchange = *MakeTokenExchange("flat", &group);
    DispatchPlan plan;
    plan.send.resize(1);
    plan.receive.resize(1);
    EXPECT_THROW(exchange->Dispatch(at::zeros({2, 3}), plan), c10::Error);
    plan.send.resize(2);
    EXPECT_THROW(exchange->Dispatch(at::zeros({0, 3}), plan), c10::Error);
  });
}

TEST(TokenExchangeTest, AnUnknownKindIsRefusedWithTheKnownOnes) {
  RunRanks(1, [](Communicator& group) {
    const absl::Status status = MakeTokenExchange("fast", &group).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("\"fast\"; known: flat"));
  });
}

}  // namespace
}  // namespace moesaic
