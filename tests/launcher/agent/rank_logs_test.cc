#include "launcher/agent/rank_logs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <iterator>

#include "tests/base/scratch_folder.h"

namespace moesaic {
namespace {

class RankLogsTest : public ::testing::Test {
 protected:
  std::string Read(const std::string& name) const {
    std::ifstream file(dir_ + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
};

TEST_F(RankLogsTest, TakesRanksApart) {
  RankLogs logs(dir_);
  ASSERT_TRUE(logs.Open().ok());
  logs.Take("[1,0]<stderr>:first\n[1,1]<std");
  logs.Take("out>:second\n[1,0]<stderr>:un");
  logs.Take("finished");
  logs.Finish();
  EXPECT_EQ(Read("rank-0.log"), "first\nunfinished\n");
  EXPECT_EQ(Read("rank-1.log"), "second\n");
}

TEST_F(RankLogsTest, JoinsALineThatWasWrittenInPieces) {
  RankLogs logs(dir_);
  logs.Take("[1,1]<stderr>:fault [1,1]<stderr>:kill [1,0]<stderr>:other\n[1,1]<stderr>:now\n");
  logs.Finish();
  EXPECT_EQ(Read("rank-0.log"), "other\n");
  EXPECT_EQ(Read("rank-1.log"), "fault kill now\n");
}

TEST_F(RankLogsTest, NamesTheSignalAndTheLastLines) {
  RankLogs logs(dir_);
  logs.Take("[1,2]<stderr>:about to fall\n");
  logs.Take(
      "mpirun noticed that process rank 2 with PID 0 on node here exited on signal 9 (Killed).\n");
  logs.Finish();
  EXPECT_EQ(logs.FirstFailure(),
            "rank 2 was killed by signal 9 (Killed); its last lines:\n  about to fall");
  EXPECT_EQ(logs.failed_rank(), 2u);
}

TEST_F(RankLogsTest, NamesTheExitCode) {
  RankLogs logs(dir_);
  logs.Take("  Process name: [[4242,1],3]\n  Exit code:    7\n");
  logs.Finish();
  EXPECT_EQ(logs.FirstFailure(), "rank 3 exited with code 7");
  EXPECT_THAT(Read("mpirun.log"), ::testing::HasSubstr("Exit code"));
}

TEST_F(RankLogsTest, NamesTheHostWhoseDaemonIsLost) {
  RankLogs logs(dir_);
  logs.Take(
      "ORTE has lost communication with a remote daemon.\n\n"
      "  HNP daemon   : [[4242,0],0] on node n0\n"
      "  Remote daemon: [[4242,0],2] on node 10.0.0.3\n");
  logs.Finish();
  EXPECT_EQ(logs.lost_host(), "10.0.0.3");
  EXPECT_FALSE(logs.failed_rank().has_value());
  EXPECT_EQ(logs.FirstFailure(), "host 10.0.0.3: mpirun lost its daemon there");
}

TEST_F(RankLogsTest, NamesTheHostThatNoDaemonStartedOn) {
  RankLogs logs(dir_);
  logs.Take("moesaic-orted-shim: host 10.0.0.3: its agent does not answer\n");
  logs.Finish();
  EXPECT_EQ(logs.lost_host(), "10.0.0.3");
  EXPECT_EQ(logs.FirstFailure(), "host 10.0.0.3: its agent does not answer");
}

TEST_F(RankLogsTest, SaysNothingWhenMpirunSaidNothing) {
  RankLogs logs(dir_);
  logs.Take("[1,0]<stderr>:process rank 9 with PID 1 on node x exited on signal 9 (Killed).\n");
  logs.Finish();
  EXPECT_EQ(logs.FirstFailure(), "") << "a rank's own words are not mpirun's";
}

}  // namespace
}  // namespace moesaic
