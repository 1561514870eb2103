// Run by mpirun: training over MPI gives the bits that the in-process communicator gives, and one
// process. Usage: mpirun -n N mpi_equality_test EXPERT_PARALLEL_DEGREE
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include <ATen/ATen.h>

#include "parallel/comm/mpi.h"
#include "tests/equivalence/training_run.h"

namespace moesaic {
namespace {

MpiRuntime* g_mpi = nullptr;
int g_expert = 1;

// A folder that all ranks see, made by rank 0.
std::string SharedFolder(Communicator& world) {
  int64_t pid = getpid();
  world.Broadcast(&pid, sizeof(pid), 0);
  const std::string folder =
      (std::filesystem::temp_directory_path() / ("mpi_equality_" + std::to_string(pid))).string();
  if (world.rank() == 0) std::filesystem::create_directories(folder);
  world.Barrier();
  return folder;
}

class MpiEquality : public ::testing::Test {
 protected:
  void SetUp() override {
    world_ = g_mpi->World();
    shared_ = SharedFolder(*world_);
    const std::string mine = shared_ + "/" + std::to_string(world_->rank());
    std::filesystem::create_directories(mine);
    spec_ = TinyJob(mine, 5);
    layout_ = {.ranks = world_->size(), .expert = g_expert};
  }
  void TearDown() override {
    world_->Barrier();
    if (world_->rank() == 0) std::filesystem::remove_all(shared_);
  }

  // What this rank owns of the run over MPI has the bits of the in-process run and of one process.
  void ExpectSameBitsEverywhere() {
    spec_.mutable_train()->set_reproducible(true);
    const RunResult mine = TrainAsRank(spec_, layout_, kSteps, *world_);
    const RunResult reference = TrainInProcess(spec_, layout_, kSteps);
    ExpectSameBits(reference, TrainInProcess(spec_, {}, kSteps));
    EXPECT_EQ(mine.losses, reference.losses);
    EXPECT_EQ(mine.norms, reference.norms);
    EXPECT_EQ(mine.validation_loss, reference.validation_loss);
    for (const auto& [name, weight] : mine.weights) {
      EXPECT_TRUE(at::equal(weight, reference.weights.at(name))) << name;
      EXPECT_TRUE(at::equal(mine.gradients.at(name), reference.gradients.at(name))) << name;
    }
  }

  static constexpr int kSteps = 3;
  std::unique_ptr<Communicator> world_;
  std::string shared_;
  JobSpec spec_;
  RunLayout layout_;
};

TEST_F(MpiEquality, ReproducibleModeHasTheBitsOfOneProcess) { ExpectSameBitsEverywhere(); }

TEST_F(MpiEquality, ReproducibleModeHasTheBitsOfOneProcessInBf16) {
  spec_.mutable_train()->set_precision(BF16);
  ExpectSameBitsEverywhere();
}

// The two kinds add in different orders, so fast mode agrees by tolerance.
TEST_F(MpiEquality, FastModeFollowsTheInProcessRanks) {
  const RunResult mine = TrainAsRank(spec_, layout_, kSteps, *world_);
  const RunResult reference = TrainInProcess(spec_, layout_, kSteps);
  for (int step = 0; step < kSteps; ++step) {
    EXPECT_NEAR(mine.losses[step], reference.losses[step], 1e-4 * reference.losses[step]) << step;
  }
}

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  auto mpi = moesaic::MpiRuntime::Create(nullptr);
  if (!mpi.ok()) return 1;
  moesaic::g_mpi = mpi->get();
  if (argc > 1) moesaic::g_expert = std::atoi(argv[1]);
  return RUN_ALL_TESTS();
}
