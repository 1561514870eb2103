// moesaic ckpt with --coordinator: the verbs, run in process against a real coordinator on
// loopback.
#include "launcher/verbs/ckpt_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/launcher/verbs/run_moesaic.h"
#include "tests/scheduler/service/cluster_of_one.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

class CkptClusterTest : public ClusterOfOne {
 protected:
  void SetUp() override {
    verify_checkpoints_ = false;  // else damage may be found before a verb looks for it
    ClusterOfOne::SetUp();
    const auto root = CheckpointRoot::Open(&FileSystem::System(), dir_ + "/checkpoints");
    for (const uint64_t step : {100, 200, 300}) {
      const auto committed = CommitTiny(&FileSystem::System(), root->get(), 2, step, 1);
      ASSERT_TRUE(committed.ok()) << committed.status();
    }
    JobSpec spec = TinyJob();
    spec.mutable_elastic()->mutable_nodes()->set_min(1);
    spec.mutable_elastic()->mutable_nodes()->set_max(1);
    spec.mutable_elastic()->set_slots_per_node(1);
    spec.mutable_train()->set_steps(1000);
    spec.mutable_run()->set_dir(dir_);
    spec.mutable_checkpoint()->set_dir(dir_ + "/checkpoints");
    spec.mutable_checkpoint()->mutable_keep()->set_last(1);
    job_ = spec.name();
    StartJob(spec);
  }

  VerbOutcome Ckpt(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "ckpt");
    arguments.insert(arguments.end(), {"--coordinator", server_->address()});
    return RunMoesaic(std::move(arguments));
  }

  std::string At(uint64_t step) const { return job_ + "@" + std::to_string(step); }
  std::string PathOf(uint64_t step) const {
    return std::filesystem::path(dir_ + "/checkpoints/" + StepFolderName(step))
        .lexically_normal()
        .string();
  }

  std::string job_;
};

TEST_F(CkptClusterTest, LsSaysWhatThereIsAndWhyItStays) {
  ASSERT_EQ(Ckpt({"pin", At(100), "--note", "a good one"}).exit_code, kExitOk);
  const Json json = Ckpt({"ls", job_, "-o", "json"}).json();
  ASSERT_EQ(json["checkpoints"].size(), 3u);
  const Json& first = json["checkpoints"][0];
  EXPECT_EQ(first["step"], 100);
  EXPECT_EQ(first["path"], PathOf(100));
  EXPECT_EQ(first["pin_note"], "a good one");
  EXPECT_EQ(first["kept_for"], Json({"pinned"}));
  EXPECT_EQ(first["contents"], "full");
  EXPECT_GT(first["files"], 0);
  EXPECT_EQ(json["checkpoints"][1]["kept_for"], Json::array());
  EXPECT_EQ(json["checkpoints"][2]["kept_for"], Json({"newest"}));
  const VerbOutcome text = Ckpt({"ls", At(200)});
  EXPECT_THAT(text.out, HasSubstr("         200  "));
  EXPECT_THAT(text.out, Not(HasSubstr("         300  ")));
}

TEST_F(CkptClusterTest, ShowSaysTheSameAsOfTheFolder) {
  const Json newest = Ckpt({"show", job_, "-o", "json"}).json();
  EXPECT_EQ(newest["step"], 300);
  EXPECT_EQ(newest["path"], PathOf(300));
  EXPECT_GT(newest["objects"], 0);
  EXPECT_FALSE(newest.contains("object_list"));
  const Json older = Ckpt({"show", At(100), "--objects", "-o", "json"}).json();
  EXPECT_EQ(older["step"], 100);
  EXPECT_EQ(older["object_list"].size(), older["objects"]);
}

TEST_F(CkptClusterTest, VerifyPassesWhatIsSoundAndSetsAsideWhatIsNot) {
  const VerbOutcome sound = Ckpt({"verify", "--all", job_, "-o", "json"});
  EXPECT_EQ(sound.exit_code, kExitOk) << sound.err;
  EXPECT_EQ(sound.json()["checkpoints"].size(), 3u);

  DamageTiny(PathOf(200));
  const VerbOutcome damaged = Ckpt({"verify", At(200)});
  EXPECT_EQ(damaged.exit_code, kExitCheckpointInvalid);
  EXPECT_THAT(damaged.out, HasSubstr("x-L001-E0000.safetensors"));
  EXPECT_THAT(damaged.err, HasSubstr("was moved to .quarantine"));
  const Json json = Ckpt({"ls", job_, "-o", "json"}).json();
  EXPECT_EQ(json["checkpoints"].size(), 2u);
  ASSERT_EQ(json["quarantined"].size(), 1u);
  EXPECT_THAT(json["quarantined"][0]["reason"], HasSubstr("x-L001-E0000.safetensors"));
  EXPECT_EQ(Ckpt({"verify", At(200)}).exit_code, kExitNotFound);
  EXPECT_EQ(Ckpt({"verify", At(100), "--quick"}).exit_code, kExitUsage);
}

TEST_F(CkptClusterTest, RmRefusesThePinnedAndTheUsed) {
  ASSERT_EQ(Ckpt({"pin", At(100)}).exit_code, kExitOk);
  const VerbOutcome pinned = Ckpt({"rm", At(100)});
  EXPECT_EQ(pinned.exit_code, kExitUsage);
  EXPECT_THAT(pinned.err, HasSubstr("is pinned; --force"));
  ASSERT_EQ(Ckpt({"unpin", At(100)}).exit_code, kExitOk);
  const VerbOutcome removed = Ckpt({"rm", At(100), "-o", "json"});
  EXPECT_EQ(removed.json()["removed"], Json({PathOf(100)}));
  EXPECT_FALSE(std::filesystem::exists(PathOf(100)));
  // The job goes on from the newest.
  const VerbOutcome used = Ckpt({"rm", At(300), "--force"});
  EXPECT_EQ(used.exit_code, kExitUsage);
  EXPECT_THAT(used.err, HasSubstr("stop it first"));
  EXPECT_TRUE(std::filesystem::exists(PathOf(300)));
}

TEST_F(CkptClusterTest, WhatIsNotThereIsExit3AndWhatIsNoJobExit2) {
  for (const char* verb : {"ls", "show", "verify"}) {
    EXPECT_EQ(Ckpt({verb, "nobody"}).exit_code, kExitNotFound) << verb;
    EXPECT_EQ(Ckpt({verb, dir_ + "/checkpoints"}).exit_code, kExitUsage) << verb;
  }
  for (const char* verb : {"show", "verify", "pin", "unpin", "rm"}) {
    const VerbOutcome result = Ckpt({verb, At(150)});
    EXPECT_EQ(result.exit_code, kExitNotFound) << verb;
    EXPECT_THAT(result.err, HasSubstr("no checkpoint of step 150")) << verb;
  }
  for (const char* verb : {"pin", "unpin", "rm"}) {
    EXPECT_THAT(Ckpt({verb, job_}).err, HasSubstr("which step")) << verb;
  }
  EXPECT_EQ(Ckpt({"ls", job_ + "@newest"}).exit_code, kExitUsage);
}

TEST(CkptClusterFlags, AFlagOfTheConnectionMakesArgumentsJobs) {
  ConnectionFlags flags;
  EXPECT_FALSE(NamesJobs(flags));
  flags.tls.dir = "/etc/moesaic";
  EXPECT_TRUE(NamesJobs(flags));
}

}  // namespace
}  // namespace moesaic
