#include "launcher/chaos/chaos_schedule.h"

#include <gtest/gtest.h>

namespace moesaic {
namespace {

constexpr char kSchedule[] = R"(job: tiny
seed: 7
recover_within: 30s
faults:
  - {at: step 40, target: rank 1, fault: kill}
  - {at: 30s, target: node n2, fault: "stop:5s"}
random: {every: 20s, until: 5m, targets: [rank, node], faults: [kill, segv, "slow:3x:10s"]}
)";

TEST(ChaosScheduleTest, ReadsWhatIsWritten) {
  const auto schedule = ParseChaosSchedule("chaos.yaml", kSchedule);
  ASSERT_TRUE(schedule.ok()) << schedule.status();
  EXPECT_EQ(schedule->job, "tiny");
  EXPECT_EQ(schedule->seed, 7u);
  EXPECT_EQ(schedule->recover_within, absl::Seconds(30));
  ASSERT_EQ(schedule->faults.size(), 2u);
  EXPECT_EQ(schedule->faults[0].at.step, 40u);
  EXPECT_EQ(schedule->faults[0].target.rank, 1u);
  EXPECT_EQ(schedule->faults[0].fault.kind(), Fault::KILL);
  EXPECT_EQ(schedule->faults[1].at.time, absl::Seconds(30));
  EXPECT_EQ(schedule->faults[1].target.node, "n2");
  EXPECT_EQ(schedule->faults[1].fault.kind(), Fault::STOP);
  EXPECT_EQ(schedule->faults[1].fault.seconds(), 5);
  EXPECT_EQ(schedule->faults[1].text, "stop:5s of node n2");
}

TEST(ChaosScheduleTest, TheSeedDecidesTheRandomFaults) {
  auto schedule = ParseChaosSchedule("chaos.yaml", kSchedule);
  ASSERT_TRUE(schedule.ok());
  const auto texts = [&](uint64_t seed) {
    schedule->seed = seed;
    std::vector<std::string> found;
    for (const PlannedFault& fault : FaultsOf(*schedule)) {
      found.push_back(absl::FormatDuration(fault.at.time) + " " + fault.text);
    }
    return found;
  };
  EXPECT_EQ(texts(7), texts(7));
  EXPECT_NE(texts(7), texts(8));
  EXPECT_GT(texts(7).size(), 7u);  // 15 on average, and two that were written
}

TEST(ChaosScheduleTest, RandomFaultsComeInOrderAndFitTheirTargets) {
  auto schedule = ParseChaosSchedule("chaos.yaml", kSchedule);
  ASSERT_TRUE(schedule.ok());
  for (schedule->seed = 0; schedule->seed < 50; ++schedule->seed) {
    const std::vector<PlannedFault> faults = FaultsOf(*schedule);
    ASSERT_TRUE(faults.back().at.step.has_value());
    for (size_t i = 0; i + 1 < faults.size(); ++i) {
      EXPECT_TRUE(Fits(faults[i].fault, faults[i].target.kind)) << faults[i].text;
      EXPECT_LE(faults[i].at.time, absl::Minutes(5));
      if (i > 0) {
        EXPECT_LE(faults[i - 1].at.time, faults[i].at.time);
      }
    }
  }
}

TEST(ChaosScheduleTest, ProblemsNameTheirPlace) {
  const auto problem = [](const std::string& text) {
    const auto schedule = ParseChaosSchedule("c.yaml", text);
    return schedule.ok() ? "" : std::string(schedule.status().message());
  };
  EXPECT_EQ(
      problem("job: a\nfault: []\n"),
      "c.yaml:2:1: unknown key \"fault\"; there are faults, job, random, recover_within, seed");
  EXPECT_EQ(problem("job: a\njob: b\n"), "c.yaml:2:1: job is there twice");
  EXPECT_EQ(problem("job: a\n"), "c.yaml: there are neither faults nor random ones");
  EXPECT_NE(problem("job: a\nfaults: [{at: 3, target: rank, fault: kill}]\n").find("no moment"),
            std::string::npos);
  EXPECT_NE(problem("job: a\nfaults: [{at: 3s, target: rank 1, fault: drop_net}]\n")
                .find("drop_net cannot hit rank 1"),
            std::string::npos);
  EXPECT_NE(problem("job: a\nseed: x\n").find("c.yaml:2:7: \"x\" is not a whole number"),
            std::string::npos);
}

TEST(ChaosScheduleTest, FaultsAreSpelledOneWay) {
  EXPECT_EQ(ParseFault("slow:3x:10s")->factor(), 3);
  EXPECT_EQ(ParseFault("slow:3x:10s")->seconds(), 10);
  EXPECT_EQ(ParseFault("exit7")->exit_code(), 7);
  EXPECT_EQ(ParseFault("hang_collective")->seconds(), 0);
  for (const char* wrong : {"", "slow", "slow:3", "slow:0.5x", "kill:3s", "stop:-1s", "exit1"}) {
    EXPECT_FALSE(ParseFault(wrong).ok()) << wrong;
  }
}

}  // namespace
}  // namespace moesaic
