// The verbs that talk to a coordinator, run in process against a real one on loopback whose agent
// is played by the test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "launcher/verbs/job_view.h"
#include "launcher/verbs/rank_list.h"
#include "tests/launcher/verbs/run_moesaic.h"
#include "tests/scheduler/service/cluster_of_one.h"
#include "tests/scheduler/state/cluster_fixture.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

// Output that another thread looks at while it is written.
class LockedText : public std::streambuf {
 public:
  std::string text() {
    MutexLock lock(&mutex_);
    return text_;
  }

 protected:
  int_type overflow(int_type c) override {
    MutexLock lock(&mutex_);
    if (c != traits_type::eof()) text_.push_back(traits_type::to_char_type(c));
    return c;
  }
  std::streamsize xsputn(const char* bytes, std::streamsize count) override {
    MutexLock lock(&mutex_);
    text_.append(bytes, static_cast<size_t>(count));
    return count;
  }

 private:
  Mutex mutex_;
  std::string text_ ABSL_GUARDED_BY(mutex_);
};

class ClusterVerbsTest : public ClusterOfOne {
 protected:
  // Not Run: a test has a function of that name.
  VerbOutcome Moesaic(std::vector<std::string> arguments) const {
    LockedText text;
    return MoesaicInto(&text, std::move(arguments));
  }
  VerbOutcome MoesaicInto(LockedText* text, std::vector<std::string> arguments) const {
    arguments.insert(arguments.end(), {"--coordinator", server_->address()});
    std::ostream out(text);
    VerbOutcome outcome = RunMoesaicInto(out, std::move(arguments));
    outcome.out = text->text();
    return outcome;
  }

  JobSpec Spec(const std::string& name) const {
    JobSpec spec = SmallJob(name, 1, 1, 1);
    spec.mutable_checkpoint()->set_dir(dir_ + "/" + name + "/checkpoints");
    spec.mutable_run()->set_dir(dir_ + "/" + name);
    return spec;
  }
  void Submit(const std::string& name) {
    ASSERT_TRUE(core_->Handle(JobSubmitted{Spec(name), "auto"}).ok());
  }
  void Log(const std::string& job, const std::string& file, const std::string& text) const {
    const std::string folder = dir_ + "/" + job + "/logs/generation-1";
    std::filesystem::create_directories(folder);
    std::ofstream(folder + "/" + file, std::ios::app) << text;
  }
};

TEST_F(ClusterVerbsTest, ListShowsJobsInColumnsAndAsJson) {
  EXPECT_EQ(Moesaic({"list", "-o", "json"}).json(), Json::parse(R"({"jobs": []})"));
  Submit("first");
  Submit("second");
  const VerbOutcome text = Moesaic({"list"});
  EXPECT_EQ(text.exit_code, kExitOk);
  EXPECT_THAT(text.out, HasSubstr("JOB     STATE"));
  EXPECT_THAT(text.out, HasSubstr("second  WAITING"));
  const Json jobs = Moesaic({"list", "-o", "json", "--state", "waiting"}).json()["jobs"];
  ASSERT_EQ(jobs.size(), 2u);
  EXPECT_EQ(jobs[0]["job"], "first");
  EXPECT_EQ(Moesaic({"list", "-o", "json", "--state", "RUNNING"}).json()["jobs"].size(), 0u);
  EXPECT_EQ(Moesaic({"list", "--state", "BUSY"}).exit_code, kExitUsage);
}

TEST_F(ClusterVerbsTest, StatusSaysWhatAJobWaitsFor) {
  Submit("a");
  const VerbOutcome text = Moesaic({"status", "a"});
  EXPECT_EQ(text.exit_code, kExitOk);
  EXPECT_THAT(text.out, HasSubstr("a: WAITING: waiting for nodes"));
  const Json json = Moesaic({"status", "a", "-o", "json"}).json();
  EXPECT_EQ(json["state"], "WAITING");
  EXPECT_EQ(json["step"], 0);
  EXPECT_TRUE(json["committed_step"].is_null());
  EXPECT_TRUE(json["exit_code"].is_null());
}

TEST_F(ClusterVerbsTest, StatusEscapesWhatCameFromElsewhere) {
  JobStatus status;
  status.set_job("a");
  status.set_state(FAILED);
  status.set_reason("\033]0;owned\007");
  const std::string text = StatusText(status, absl::Now());
  EXPECT_THAT(text, Not(HasSubstr("\033")));
  EXPECT_THAT(text, HasSubstr("\\x1b]0;owned\\x07"));
}

TEST_F(ClusterVerbsTest, StatusAndEventsSayWhichPhaseARecipeIsIn) {
  JobEvent event;
  JobStatus status;
  const auto show = [&] {
    *status.mutable_last_step() = event.step();
    return std::pair(Json(StatusJson(status, absl::Now())), StatusText(status, absl::Now()));
  };
  event.mutable_step()->set_step(7);
  EXPECT_TRUE(show().first["phase"].is_null());
  EXPECT_TRUE(show().first["temperature"].is_null());
  EXPECT_THAT(show().second, Not(HasSubstr("phase")));

  event.mutable_step()->set_phase(DENSE_TO_SPARSE);
  event.mutable_step()->set_temperature(1.416);
  EXPECT_EQ(show().first["phase"], "dense_to_sparse");
  EXPECT_EQ(show().first["temperature"], 1.416);
  EXPECT_THAT(show().second, HasSubstr("  phase       dense_to_sparse, temperature 1.42\n"));
  EXPECT_EQ(EventJson(event)["phase"], "dense_to_sparse");

  event.mutable_step()->set_phase(static_cast<RecipePhase>(77));  // of a newer program
  EXPECT_TRUE(show().first["phase"].is_null());
}

TEST_F(ClusterVerbsTest, WhatIsNotThereIsExit3AndNoCoordinatorIsExit5) {
  for (const char* verb : {"status", "stop", "wait", "logs", "events"}) {
    EXPECT_EQ(Moesaic({verb, "nobody"}).exit_code, kExitNotFound) << verb;
    EXPECT_EQ(RunMoesaic({verb, "nobody", "--coordinator", "127.0.0.1:1"}).exit_code,
              kExitUnreachable)
        << verb;
  }
}

TEST_F(ClusterVerbsTest, WaitEndsWithTheJobsCodeOrTimesOut) {
  Submit("a");
  EXPECT_EQ(Moesaic({"wait", "a", "--timeout", "0s"}).exit_code, kExitTimedOut);
  EXPECT_EQ(Moesaic({"stop", "a"}).exit_code, kExitOk);
  const VerbOutcome ended = Moesaic({"wait", "a"});
  EXPECT_EQ(ended.exit_code, kExitCancelled);
  EXPECT_EQ(ended.out, "");
  EXPECT_THAT(ended.err, HasSubstr("CANCELLED"));
}

TEST_F(ClusterVerbsTest, EventsGoOnOverARestartOfTheCoordinator) {
  Submit("a");
  const std::string events = Moesaic({"events", "a", "-o", "json"}).out;
  EXPECT_EQ(Json::parse(events.substr(0, events.find('\n')))["sequence"], 1);
  const uint64_t newest = core_->GetJob("a")->newest_event();
  VerbOutcome followed;
  LockedText text;
  std::thread follower([&] { followed = MoesaicInto(&text, {"events", "a", "-f", "-o", "json"}); });
  while (text.text().empty()) std::this_thread::yield();
  const std::string address = server_->address();
  StopServer();
  StartServer(address);
  EXPECT_EQ(core_->GetJob("a")->newest_event(), newest);
  ASSERT_TRUE(core_->Handle(StopRequested{"a", true}).ok());
  follower.join();
  EXPECT_EQ(followed.exit_code, kExitOk) << followed.err;
  std::istringstream lines(followed.out);
  std::string line;
  uint64_t sequence = 0;
  std::string state;
  while (std::getline(lines, line)) {
    const Json event = Json::parse(line);
    EXPECT_EQ(event["sequence"], ++sequence);
    if (event["kind"] == "state") state = event["state"];
  }
  EXPECT_GT(sequence, newest);
  EXPECT_EQ(state, "CANCELLED");
}

TEST_F(ClusterVerbsTest, LogsShowARankOrSeveral) {
  StartJob(Spec("a"));
  Log("a", "rank-0.log", "zero\nten\n");
  Log("a", "rank-1.log", "one\n");
  Log("a", "mpirun.log", "mpi\n");
  EXPECT_EQ(Moesaic({"logs", "a"}).out, "zero\nten\n");
  EXPECT_EQ(Moesaic({"logs", "a", "--rank", "0-1", "--grep", "^(one|zero)$"}).out,
            "0| zero\n1| one\n");
  EXPECT_EQ(Moesaic({"logs", "a", "--mpirun"}).out, "mpi\n");
  EXPECT_EQ(Moesaic({"logs", "a", "--rank", "7"}).exit_code, kExitNotFound);
  EXPECT_EQ(Moesaic({"logs", "a", "--gen", "9"}).exit_code, kExitNotFound);
  EXPECT_EQ(Moesaic({"logs", "a", "--grep", "("}).exit_code, kExitUsage);
}

TEST_F(ClusterVerbsTest, FollowedLogsEndWithTheJobAndLoseNothingOverARestart) {
  StartJob(Spec("a"));
  Log("a", "rank-0.log", "before\n");
  VerbOutcome followed;
  LockedText text;
  std::thread follower([&] { followed = MoesaicInto(&text, {"logs", "-f", "a"}); });
  while (text.text() != "before\n") std::this_thread::yield();
  const std::string address = server_->address();
  StopServer();
  Log("a", "rank-0.log", "mean");
  StartServer(address);
  Log("a", "rank-0.log", "while\nafter");
  agent_.reset();
  ASSERT_TRUE(core_->Handle(StopRequested{"a", true}).ok());
  while (!HasEnded(core_->GetJob("a")->state())) {
    core_->Handle(Tick{}).IgnoreError();
    std::this_thread::yield();
  }
  follower.join();
  EXPECT_EQ(followed.exit_code, kExitOk) << followed.err;
  EXPECT_EQ(followed.out, "before\nmeanwhile\nafter\n");
}

TEST_F(ClusterVerbsTest, LogsThatLeadOutOfTheRunFolderAreNotRead) {
  StartJob(Spec("a"));
  Log("a", "mpirun.log", "");
  std::ofstream(dir_ + "/secret") << "secret\n";
  const std::string folder = dir_ + "/a/logs/generation-1/";
  std::filesystem::create_symlink(dir_ + "/secret", folder + "rank-0.log");
  ASSERT_EQ(mkfifo((folder + "rank-1.log").c_str(), 0600), 0);
  for (const char* rank : {"0", "1"}) {
    const VerbOutcome result = Moesaic({"logs", "a", "--rank", rank});
    EXPECT_NE(result.exit_code, kExitOk) << rank;
    EXPECT_EQ(result.out, "") << rank;
  }
  // Nor where a folder on the way is a link.
  Log("a", "rank-2.log", "mine\n");
  std::filesystem::rename(dir_ + "/a/logs", dir_ + "/elsewhere");
  std::filesystem::create_directory_symlink(dir_ + "/elsewhere", dir_ + "/a/logs");
  const VerbOutcome result = Moesaic({"logs", "a", "--rank", "2"});
  EXPECT_NE(result.exit_code, kExitOk);
  EXPECT_EQ(result.out, "");
}

TEST_F(ClusterVerbsTest, NodesAreListedAndChanged) {
  StartJob(Spec("a"));
  const Json nodes = Moesaic({"node", "ls", "-o", "json"}).json()["nodes"];
  ASSERT_EQ(nodes.size(), 1u);
  EXPECT_EQ(nodes[0]["node"], "n1");
  EXPECT_EQ(nodes[0]["state"], "BUSY");
  EXPECT_EQ(nodes[0]["job"], "a");
  EXPECT_THAT(Moesaic({"node", "ls"}).out, HasSubstr("n1    BUSY"));
  EXPECT_EQ(Moesaic({"node", "drain", "n1", "--deadline", "soon"}).exit_code, kExitUsage);
  EXPECT_EQ(Moesaic({"resize", "a", "--nodes", "4:2"}).exit_code, kExitUsage);
}

TEST_F(ClusterVerbsTest, SubmitPrintsTheIdAndSendsAbsolutePaths) {
  const std::string file = dir_ + "/job.yaml";
  std::ofstream(dir_ + "/corpus.bin") << "x";
  std::ofstream(dir_ + "/corpus.idx") << "x";
  std::ofstream(file) << "name: tiny\n"
                         "model: {layers: 1, hidden: 16, heads: 2, sequence: 8, vocabulary: 64,"
                         " dense_width: 16}\n"
                         "data: {train: [{path: "
                      << dir_ + "/corpus" << "}]}\n"
                      << "train: {steps: 10, global_batch: 2, micro_batch: 1}\n";
  EXPECT_EQ(
      RunMoesaic({"submit", "-f", file, "--dry-run", "--coordinator", "127.0.0.1:1"}).exit_code,
      kExitOk);
  const VerbOutcome result = Moesaic({"submit", "-f", file, "--id", "tiny-2"});
  EXPECT_EQ(result.exit_code, kExitOk) << result.err;
  EXPECT_EQ(result.out, "tiny-2\n");
  EXPECT_EQ(core_->GetSpec("tiny-2")->run().dir(),
            (std::filesystem::current_path() / "runs/tiny-2").string());
  EXPECT_EQ(core_->GetSpec("tiny-2")->checkpoint().dir(),
            (std::filesystem::current_path() / "runs/tiny-2/checkpoints").string());
  EXPECT_EQ(Moesaic({"submit", "-f", file, "--id", "tiny-2"}).exit_code, kExitUsage);
  EXPECT_EQ(Moesaic({"submit", "-f", file, "--resume", "soon"}).exit_code, kExitUsage);
}

TEST(RankList, TakesNumbersAndRanges) {
  EXPECT_THAT(*ParseRanks("3,0,2-3", 10), ElementsAre(0, 2, 3));
  for (const char* wrong : {"", "a", "3-1", "1-2-3", "0-10", "-1"}) {
    EXPECT_FALSE(ParseRanks(wrong, 10).ok()) << wrong;
  }
}

}  // namespace
}  // namespace moesaic
