#include <gtest/gtest.h>

#include "parallel/comm/in_process.h"
#include "tests/conformance/communicator_suite.h"

namespace moesaic {
namespace {

class InProcessConformanceTest : public ::testing::TestWithParam<CommunicatorCase> {};

TEST_P(InProcessConformanceTest, GroupsOfOneToFive) {
  for (int size = 1; size <= 5; ++size) RunRanks(size, GetParam().body);
}

TEST(InProcessObserverTest, EveryCallIsStamped) {
  for (int size = 1; size <= 3; ++size) {
    RecordingObserver observer;
    RunRanks(size, [&](Communicator& group) { ExpectStamps(group, observer); },
             {.observer = &observer});
    EXPECT_EQ(observer.depth(), 0);
    EXPECT_EQ(observer.stamps().size(), 4u * size);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, InProcessConformanceTest, ::testing::ValuesIn(CommunicatorCases()),
                         [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace moesaic
