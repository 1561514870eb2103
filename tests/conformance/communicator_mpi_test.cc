// Runs under mpirun: every rank runs all tests, and one that fails ends the job.
#include <gtest/gtest.h>

#include <iostream>
#include <memory>
#include <vector>

#include "parallel/comm/mpi.h"
#include "tests/conformance/communicator_suite.h"

namespace moesaic {
namespace {

Communicator* world = nullptr;
RecordingObserver* observer = nullptr;

class MpiConformanceTest : public ::testing::TestWithParam<CommunicatorCase> {};

TEST_P(MpiConformanceTest, TheWorldAndEverySmallerGroup) {
  GetParam().body(*world);
  for (int size = 1; size < world->size(); ++size) {
    std::vector<int> members(size);
    for (int r = 0; r < size; ++r) members[r] = world->size() - 1 - r;
    if (const std::unique_ptr<Communicator> group = world->Split(members, "group")) {
      GetParam().body(*group);
    }
    world->Barrier();
  }
}

TEST(MpiObserverTest, EveryCallIsStamped) {
  ExpectStamps(*world, *observer);
  EXPECT_EQ(observer->depth(), 0);
}

INSTANTIATE_TEST_SUITE_P(Cases, MpiConformanceTest, ::testing::ValuesIn(CommunicatorCases()),
                         [](const auto& one) { return one.param.name; });

int RunAllTests() {
  RecordingObserver recording;
  absl::StatusOr<std::unique_ptr<MpiRuntime>> runtime = MpiRuntime::Create(&recording);
  if (!runtime.ok()) {
    std::cerr << runtime.status() << "\n";
    return 1;
  }
  const std::unique_ptr<Communicator> all = (*runtime)->World();
  if (all->size() != (*runtime)->size() || all->rank() != (*runtime)->rank()) return 1;
  world = all.get();
  observer = &recording;
  return RUN_ALL_TESTS();
}

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  return moesaic::RunAllTests();
}
