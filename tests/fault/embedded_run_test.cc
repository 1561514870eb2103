// A whole run on this host, with a real mpirun, real processes and real files; only the model is
// missing (tests/fakes/fake_worker.cc). After each test nothing may be left (M4).
#include "launcher/run/embedded_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "launcher/run/run_summary.h"
#include "proto/job_spec.h"
#include "tests/base/scratch_folder.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class EmbeddedRunTest : public ::testing::Test {
 protected:
  void SetUp() override {
    spec_.set_name("job");
    spec_.mutable_model()->set_layers(1);
    spec_.mutable_model()->set_hidden(16);
    spec_.mutable_model()->set_heads(2);
    spec_.mutable_model()->set_sequence(8);
    spec_.mutable_model()->set_vocabulary(64);
    spec_.mutable_model()->mutable_moe()->set_experts(2);
    spec_.mutable_model()->mutable_moe()->set_active(2);
    spec_.mutable_model()->mutable_moe()->set_expert_width(8);
    spec_.mutable_data()->add_train()->set_path("corpus");
    spec_.mutable_train()->set_steps(30);
    spec_.mutable_train()->set_global_batch(4);
    spec_.mutable_train()->set_micro_batch(1);
    spec_.mutable_elastic()->set_slots_per_node(2);
    spec_.mutable_run()->set_dir(dir_ + "/run");
    spec_.mutable_checkpoint()->set_every_steps(10);
    ApplyDefaults(&spec_);
    fs::create_directories(spec_.run().dir());
  }

  // M4: no process, no shared memory, no temporary folder is left.
  void TearDown() override {
    EXPECT_TRUE(fs::is_empty(shared_memory_));
    for (const auto& entry : fs::directory_iterator("/proc")) {
      std::ifstream file(entry.path() / "cmdline");
      const std::string command{std::istreambuf_iterator<char>(file), {}};
      EXPECT_EQ(command.find(std::getenv("FAKE_WORKER")), std::string::npos) << entry.path();
    }
    EXPECT_FALSE(fs::exists(dir_ + "/run/checkpoints/.staging") &&
                 !fs::is_empty(dir_ + "/run/checkpoints/.staging"));
  }

  void Fault(const std::string& line) {
    std::ofstream(spec_.run().dir() + "/faults", std::ios::app) << line << '\n';
  }

  absl::StatusOr<std::unique_ptr<EmbeddedRun>> Start(const std::string& resume = "auto") {
    EmbeddedRunOptions options;
    options.spec = spec_;
    options.resume = resume;
    options.worker = std::getenv("FAKE_WORKER");
    options.mpirun = mpirun_;
    options.binary = "test";
    options.cores = 2;
    options.shared_memory = shared_memory_;
    options.environment = {{"PATH", std::getenv("PATH")}, {"HOME", dir_}};
    return EmbeddedRun::Start(std::move(options));
  }

  JobStatus Run(const std::string& resume = "auto") {
    auto run = Start(resume);
    EXPECT_TRUE(run.ok()) << run.status();
    if (!run.ok()) return JobStatus();
    const auto status = (*run)->Follow([&](const JobEvent& event) {
      if (event.has_note()) notes_ += event.note() + "\n";
      if (event.has_step() && stop_at_ != 0 && event.step().step() >= stop_at_) {
        stop_at_ = 0;
        EXPECT_TRUE((*run)->Stop(stop_now_).ok());
      }
    });
    EXPECT_TRUE(status.ok()) << status.status();
    return status.value_or(JobStatus());
  }

  std::string Log(const std::string& name) const {
    std::ifstream file(spec_.run().dir() + "/logs/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  JobSpec spec_;
  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  std::string mpirun_ = "mpirun";
  std::string notes_;
  uint64_t stop_at_ = 0;
  bool stop_now_ = false;
  const ScratchFolder memory_{"/dev/shm"};
  const std::string shared_memory_ = memory_.path();
};

TEST_F(EmbeddedRunTest, M4TrainsToTheEndAndSaves) {
  const JobStatus status = Run();
  EXPECT_EQ(status.state(), SUCCEEDED) << status.DebugString();
  EXPECT_EQ(status.exit_code(), 0);
  EXPECT_EQ(status.committed_step(), 30u);
  EXPECT_EQ(status.tokens(), 30u * 128);
  EXPECT_TRUE(fs::exists(status.committed_path() + "/MANIFEST.pb"));
}

TEST_F(EmbeddedRunTest, FinishedJobRunAgainSaysSo) {
  EXPECT_EQ(Run().state(), SUCCEEDED);
  const JobStatus again = Run();
  EXPECT_EQ(again.state(), SUCCEEDED);
  EXPECT_THAT(again.reason(), HasSubstr("--resume never"));
  EXPECT_EQ(again.tokens(), 30u * 128);
  fs::remove(spec_.run().dir() + "/acknowledged");  // what is given up is no loss
  const JobStatus anew = Run("never");
  EXPECT_EQ(anew.state(), SUCCEEDED);
  EXPECT_EQ(anew.generation(), 2u);
  EXPECT_THAT(notes_, HasSubstr(".quarantine"));
}

TEST_F(EmbeddedRunTest, C1KilledRankRestartsFromTheNewestCheckpoint) {
  Fault("1 1 25 kill");
  const JobStatus status = Run();
  EXPECT_EQ(status.state(), SUCCEEDED) << status.DebugString();
  EXPECT_EQ(status.restarts(), 1u);
  EXPECT_EQ(status.generation(), 2u);
  EXPECT_THAT(status.last_failure(), HasSubstr("rank 1 was killed by signal 9"));
  EXPECT_EQ(status.tokens(), 30u * 128) << "steps done again count once";
  EXPECT_THAT(Log("generation-1/rank-1.log"), HasSubstr("fault kill at step 25"));
}

TEST_F(EmbeddedRunTest, ExitZeroEarlyIsAFailure) {
  Fault("1 0 5 exit0");
  const JobStatus status = Run();
  EXPECT_EQ(status.state(), SUCCEEDED) << status.DebugString();
  EXPECT_EQ(status.restarts(), 1u);
}

TEST_F(EmbeddedRunTest, HungRankIsKilledAfterTheProgressTimeout) {
  spec_.mutable_health()->set_progress_timeout(3);
  Fault("1 1 12 hang");
  const JobStatus status = Run();
  EXPECT_EQ(status.state(), SUCCEEDED) << status.DebugString();
  EXPECT_EQ(status.restarts(), 1u);
  EXPECT_THAT(status.last_failure(), HasSubstr("no progress"));
  EXPECT_THAT(status.last_failure(), HasSubstr("rank 1"));
}

TEST_F(EmbeddedRunTest, RankThatIsNeverReadyIsNamed) {
  spec_.mutable_health()->set_start_timeout(8);
  Fault("1 1 0 late");
  const JobStatus status = Run();
  EXPECT_EQ(status.state(), SUCCEEDED) << status.DebugString();
  EXPECT_EQ(status.restarts(), 1u);
  EXPECT_THAT(status.last_failure(), HasSubstr("start_timeout"));
}

TEST_F(EmbeddedRunTest, GracefulStopSavesAndIsExit130) {
  spec_.mutable_train()->set_steps(100000);
  spec_.mutable_checkpoint()->set_every_steps(0);
  stop_at_ = 7;
  const JobStatus status = Run();
  EXPECT_EQ(status.state(), CANCELLED) << status.DebugString();
  EXPECT_GE(status.committed_step(), 7u);
  EXPECT_EQ(RunExitCode(status, 2, false), 130);
}

TEST_F(EmbeddedRunTest, StopNowKills) {
  spec_.mutable_train()->set_steps(100000);
  spec_.mutable_checkpoint()->set_every_steps(0);
  stop_at_ = 3;
  stop_now_ = true;
  const JobStatus status = Run();
  EXPECT_EQ(status.state(), CANCELLED) << status.DebugString();
  EXPECT_EQ(status.committed_step(), 0u);
}

TEST_F(EmbeddedRunTest, MissingMpirunIsSaidAtOnce) {
  mpirun_ = "no-such-mpirun";
  const JobStatus status = Run();
  EXPECT_EQ(status.state(), FAILED);
  EXPECT_EQ(status.exit_code(), 1);
  EXPECT_THAT(status.reason(), HasSubstr("no-such-mpirun was not found"));
  EXPECT_EQ(status.generation(), 1u) << "no retry helps";
}

TEST_F(EmbeddedRunTest, GivesUpWhenNothingHelps) {
  for (int generation = 1; generation <= 3; ++generation)
    Fault(std::to_string(generation) + " 0 2 exit:7");
  const JobStatus status = Run();
  EXPECT_EQ(status.exit_code(), 93) << status.DebugString();
  EXPECT_THAT(status.reason(), HasSubstr("exited"));
}

TEST_F(EmbeddedRunTest, HostThatIsTooSmallIsRefused) {
  spec_.mutable_elastic()->set_slots_per_node(3);
  const auto run = Start();
  EXPECT_TRUE(absl::IsResourceExhausted(run.status())) << run.status();
  EXPECT_THAT(std::string(run.status().message()), HasSubstr("launch.oversubscribe"));
}

TEST_F(EmbeddedRunTest, SecondRunInTheSameFolderIsRefused) {
  spec_.mutable_train()->set_steps(100000);
  auto first = Start();
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = Start();
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
}

}  // namespace
}  // namespace moesaic
