#include "trainer/catalog/expert_state.h"

#include <gtest/gtest.h>

#include <cmath>

namespace moesaic {
namespace {

// Two layers of `experts` experts.
JobSpec Job(uint32_t experts) {
  JobSpec spec;
  spec.mutable_model()->set_layers(2);
  spec.mutable_model()->mutable_moe()->set_experts(experts);
  spec.mutable_model()->mutable_moe()->mutable_pattern()->set_every(1);
  return spec;
}

TEST(ExpertState, LoadIsAnExponentialMeanOfCounts) {
  const JobSpec spec = Job(2);
  TrainingState state;
  EXPECT_TRUE(RecordedLoad(spec.model(), state).empty());
  for (const int layer : {0, 1}) RecordExpertCounts(layer, std::vector<double>{64, 0}, &state);
  EXPECT_EQ(RecordedLoad(spec.model(), state), (ExpertLoad{{64, 0}, {64, 0}}));
  RecordExpertCounts(1, std::vector<double>{0, 64}, &state);
  EXPECT_EQ(RecordedLoad(spec.model(), state), (ExpertLoad{{64, 0}, {63, 1}}));
  for (int step = 0; step < 2000; ++step) {
    RecordExpertCounts(1, std::vector<double>{10, 20}, &state);
  }
  EXPECT_NEAR(RecordedLoad(spec.model(), state)[1][1], 20, 1e-9);
}

TEST(ExpertState, LoadThatDoesNotFitTheModelIsUnknown) {
  const JobSpec spec = Job(3);
  TrainingState state;
  for (const int layer : {0, 1}) RecordExpertCounts(layer, std::vector<double>{1, 2, 3}, &state);
  ASSERT_FALSE(RecordedLoad(spec.model(), state).empty());
  TrainingState damaged = state;
  damaged.mutable_expert_load(1)->set_tokens(2, std::nan(""));
  EXPECT_TRUE(RecordedLoad(spec.model(), damaged).empty());
  damaged.mutable_expert_load(1)->set_tokens(2, -1);
  EXPECT_TRUE(RecordedLoad(spec.model(), damaged).empty());
  damaged = state;
  damaged.mutable_expert_load(1)->set_layer(2);
  EXPECT_TRUE(RecordedLoad(spec.model(), damaged).empty());
  damaged = state;
  damaged.mutable_expert_load(0)->add_tokens(1);
  EXPECT_TRUE(RecordedLoad(spec.model(), damaged).empty());
}

TEST(ExpertState, PlacementIsKeptForTheSameShapeOnly) {
  JobSpec spec = Job(3);
  const Mesh mesh = Mesh::Flat(4, 2);
  const auto placement =
      ExpertPlacement::Create(mesh, 1, {{{0, 2}, {3, 1}, {1, 2, 3}}, {{2, 1}, {0, 3}, {3, 0, 1}}});
  ASSERT_TRUE(placement.ok()) << placement.status();
  const StoredPlacement stored = StorePlacement(spec, mesh, *placement);

  const auto kept = KeptPlacement(spec, mesh, stored, 5);
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->epoch(), 5u);
  for (int layer = 0; layer < 2; ++layer) {
    for (int e = 0; e < 3; ++e) {
      const auto was = placement->holders(layer, e), is = kept->holders(layer, e);
      EXPECT_EQ(std::vector<int>(was.begin(), was.end()), std::vector<int>(is.begin(), is.end()));
    }
  }

  EXPECT_TRUE(absl::IsNotFound(KeptPlacement(spec, Mesh::Flat(6, 2), stored, 5).status()));
  EXPECT_TRUE(absl::IsNotFound(KeptPlacement(spec, Mesh::Flat(4, 4), stored, 5).status()));
  EXPECT_TRUE(absl::IsNotFound(KeptPlacement(spec, mesh, StoredPlacement(), 5).status()));
  spec.mutable_parallel()->set_expert_copies(1);
  EXPECT_TRUE(absl::IsNotFound(KeptPlacement(spec, mesh, stored, 5).status()));
}

TEST(ExpertState, DamagedPlacementIsRefused) {
  const JobSpec spec = Job(3);
  const Mesh mesh = Mesh::Flat(4, 2);
  const StoredPlacement stored =
      StorePlacement(spec, mesh, ExpertPlacement::Even(mesh, ExpertsOfLayers(spec.model())));
  for (int i = 0; i < stored.holders_size(); ++i) {
    StoredPlacement damaged = stored;
    damaged.set_holders(i, 0xffffffff);
    EXPECT_TRUE(absl::IsInvalidArgument(KeptPlacement(spec, mesh, damaged, 1).status())) << i;
  }
  StoredPlacement cut = stored;
  cut.mutable_holders()->RemoveLast();
  EXPECT_TRUE(absl::IsInvalidArgument(KeptPlacement(spec, mesh, cut, 1).status()));
  cut = stored;
  cut.add_holders(1);
  EXPECT_TRUE(absl::IsInvalidArgument(KeptPlacement(spec, mesh, cut, 1).status()));
}

}  // namespace
}  // namespace moesaic
