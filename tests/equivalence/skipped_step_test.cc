// A non-finite value anywhere skips the step everywhere.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <limits>

#include "parallel/comm/in_process.h"
#include "tests/base/scratch_folder.h"
#include "tests/equivalence/training_run.h"
#include "trainer/loop/trainer.h"

namespace moesaic {
namespace {

// Rank 1 holds the broken expert; rank 0 must skip too. Then the expert is mended and training goes
// on.
void TrainThroughABrokenExpert(const JobSpec& spec, Communicator& world) {
  at::set_num_threads(1);
  const Mesh mesh = Mesh::Flat(2, 2);
  const std::vector<int> experts(spec.model().layers(), 4);
  auto made = Trainer::Create({.spec = spec,
                               .mesh = mesh,
                               .placement = ExpertPlacement::Even(mesh, experts),
                               .rank = world.rank(),
                               .world = &world});
  ASSERT_TRUE(made.ok()) << made.status();
  Trainer& trainer = **made;
  trainer.InitialiseParameters();
  const ParameterId broken = trainer.catalog().Find("layers.0.moe.experts.3.down");
  const ParameterId head = trainer.catalog().Find("head");
  const bool holder = trainer.store().Owns(broken);
  EXPECT_EQ(holder, world.rank() == 1);
  at::Tensor kept;
  if (holder) {
    kept = trainer.store().master(broken).clone();
    trainer.store().master(broken).fill_(std::numeric_limits<float>::quiet_NaN());
  }
  const at::Tensor before = trainer.store().master(head).clone();

  const auto skipped = trainer.Step({});
  ASSERT_TRUE(skipped.ok()) << skipped.status();
  EXPECT_TRUE(skipped->metrics.skipped());
  EXPECT_TRUE(at::equal(trainer.store().master(head), before));
  EXPECT_EQ(trainer.store().first_moment(head).abs().max().item<float>(), 0);
  EXPECT_EQ(trainer.state().step(), 1u);
  EXPECT_EQ(trainer.state().samples(), spec.train().global_batch());
  EXPECT_EQ(trainer.state().optimizer_updates(), 0u);
  ASSERT_EQ(trainer.state().skipped_steps_size(), 1);
  EXPECT_EQ(trainer.state().skipped_steps(0), 1u);

  if (holder) trainer.store().master(broken).copy_(kept);
  const auto done = trainer.Step({});
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_FALSE(done->metrics.skipped());
  EXPECT_FALSE(at::equal(trainer.store().master(head), before));
  EXPECT_EQ(trainer.state().optimizer_updates(), 1u);
}

TEST(SkippedStep, L2NonFiniteOnOneRankSkipsOnAll) {
  const ScratchFolder folder;
  const JobSpec spec = TinyJob(folder.path(), 4);
  RunRanks(2, [&](Communicator& world) { TrainThroughABrokenExpert(spec, world); });
}

}  // namespace
}  // namespace moesaic
