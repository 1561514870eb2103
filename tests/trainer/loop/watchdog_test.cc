#include "trainer/loop/watchdog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace moesaic {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class ManualClock : public Clock {
 public:
  absl::Time Now() const override { return now_; }
  void Advance(absl::Duration by) { now_ += by; }

 private:
  absl::Time now_ = absl::FromUnixSeconds(1000);
};

class WatchdogTest : public ::testing::Test {
 protected:
  ManualClock clock_;
  std::vector<std::string> dumps_;
  void SetUp() override { watchdog_.SetDeadline(absl::Seconds(10)); }
  Watchdog watchdog_{{.clock = &clock_,
                      .expired = [this](const std::string& dump) { dumps_.push_back(dump); }}};
};

TEST_F(WatchdogTest, ProgressKeepsItQuiet) {
  for (int i = 0; i < 5; ++i) {
    clock_.Advance(absl::Seconds(9));
    watchdog_.SetPlace({.step = 1});
    EXPECT_FALSE(watchdog_.Check());
  }
  EXPECT_TRUE(dumps_.empty());
}

TEST_F(WatchdogTest, DumpNamesTheOperationAndThePlace) {
  watchdog_.SetPlace({.step = 7, .micro_batch = 3, .phase = "forward", .block = "layers.2.moe"});
  watchdog_.Entered(
      {.operation = "all_to_all_v", .group = "expert.0", .sequence = 41, .bytes = 640});
  clock_.Advance(absl::Seconds(11));
  EXPECT_TRUE(watchdog_.Check());
  ASSERT_EQ(dumps_.size(), 1u);
  EXPECT_THAT(dumps_[0], AllOf(HasSubstr("step 7, micro-batch 3, phase forward"),
                               HasSubstr("layers.2.moe"), HasSubstr("all_to_all_v"),
                               HasSubstr("group expert.0, sequence 41")));
}

TEST_F(WatchdogTest, FiresOnce) {
  clock_.Advance(absl::Seconds(11));
  EXPECT_TRUE(watchdog_.Check());
  clock_.Advance(absl::Seconds(11));
  EXPECT_FALSE(watchdog_.Check());
}

TEST_F(WatchdogTest, OutsideACollectiveItSaysThatThisRankIsSlow) {
  watchdog_.Entered({.operation = "barrier", .group = "data"});
  watchdog_.Left();
  clock_.Advance(absl::Seconds(11));
  EXPECT_TRUE(watchdog_.Check());
  EXPECT_THAT(dumps_.at(0), HasSubstr("this rank itself"));
}

TEST_F(WatchdogTest, StopsAtOnce) {
  watchdog_.Start(absl::Seconds(10));
  watchdog_.Stop();
  EXPECT_TRUE(dumps_.empty());
}

}  // namespace
}  // namespace moesaic
