// moesaic ckpt, run in process.
#include "launcher/verbs/ckpt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launcher/verbs/verb_list.h"
#include "tests/trainer/checkpoint/tiny_job.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

struct Outcome {
  int exit_code;
  std::string out;
  std::string err;
};

Outcome RunMoesaic(std::vector<std::string> arguments) {
  std::ostringstream out;
  std::ostringstream err;
  VerbContext context{
      .out = out, .err = err, .environment = {}, .program_path = "", .vocabulary_of = {}};
  const int exit_code = RunProgram(std::move(arguments), context);
  return {exit_code, out.str(), err.str()};
}

class CkptVerbs : public ::testing::Test {
 protected:
  CkptVerbs() {
    std::filesystem::remove_all(path_);
    root_ = *CheckpointRoot::Open(&FileSystem::System(), path_);
    for (uint64_t step : {100, 200}) {
      const auto committed = CommitTiny(&FileSystem::System(), root_.get(), 2, step, 1);
      EXPECT_TRUE(committed.ok()) << committed.status();
    }
  }
  ~CkptVerbs() override { std::filesystem::remove_all(path_); }

  void DamageStep100() {
    const std::string file = root_->StepPath(100) + "/x-L001-E0000.safetensors";
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(-1, std::ios::end);
    stream.put('\x7f');
  }

  std::string path_ = testing::TempDir() + "/ckpt-verbs." + std::to_string(getpid());
  std::unique_ptr<CheckpointRoot> root_;
};

TEST_F(CkptVerbs, LsListsEveryStep) {
  const Outcome text = RunMoesaic({"ckpt", "ls", path_});
  EXPECT_EQ(text.exit_code, kExitOk);
  EXPECT_THAT(text.out, HasSubstr("         200  1970-01-01T00:00:01Z"));
  const Json json = Json::parse(RunMoesaic({"ckpt", "ls", path_, "-o", "json"}).out);
  ASSERT_EQ(json["checkpoints"].size(), 2u);
  EXPECT_EQ(json["checkpoints"][1]["step"], 200);
  EXPECT_EQ(json["checkpoints"][1]["contents"], "full");
  EXPECT_EQ(json["checkpoints"][1]["path"], root_->StepPath(200));
}

TEST_F(CkptVerbs, LsSaysWhichStepIsDamaged) {
  std::filesystem::remove(root_->StepPath(100) + "/MANIFEST.pb");
  EXPECT_THAT(RunMoesaic({"ckpt", "ls", path_}).out, HasSubstr("100  damaged: "));
}

TEST_F(CkptVerbs, ShowTakesTheNewestStepOfARoot) {
  const Json json = Json::parse(RunMoesaic({"ckpt", "show", path_, "--objects", "-o", "json"}).out);
  EXPECT_EQ(json["step"], 200);
  EXPECT_EQ(json["samples"], 800);
  EXPECT_EQ(json["object_list"].size(), json["objects"].get<size_t>());
  const Outcome text = RunMoesaic({"ckpt", "show", root_->StepPath(100), "--objects"});
  EXPECT_THAT(text.out, HasSubstr("step               100"));
  EXPECT_THAT(text.out, HasSubstr("adam_v/layers.1.moe.experts.2.down"));
}

TEST_F(CkptVerbs, VerifyNamesTheDamageAndExits8) {
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", "--all", path_}).exit_code, kExitOk);
  DamageStep100();
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", path_}).exit_code, kExitOk);
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", "--quick", "--all", path_}).exit_code, kExitOk);
  const Outcome all = RunMoesaic({"ckpt", "verify", "--all", path_});
  EXPECT_EQ(all.exit_code, kExitCheckpointInvalid);
  EXPECT_THAT(all.out, HasSubstr("file x-L001-E0000.safetensors: the bytes of "
                                 "adam_v/layers.1.moe.experts.0.down do not match"));
  const Outcome one = RunMoesaic({"ckpt", "verify", root_->StepPath(100), "-o", "json"});
  EXPECT_EQ(one.exit_code, kExitCheckpointInvalid);
  EXPECT_FALSE(Json::parse(one.out)["checkpoints"][0]["ok"].get<bool>());
  std::filesystem::remove(root_->StepPath(100) + "/MANIFEST.pb");
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", root_->StepPath(100)}).exit_code,
            kExitCheckpointInvalid);
}

TEST_F(CkptVerbs, WhatIsNoCheckpointIsNotFound) {
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", path_ + "/none"}).exit_code, kExitNotFound);
  EXPECT_EQ(RunMoesaic({"ckpt", "ls", path_ + "/none"}).exit_code, kExitNotFound);
  std::filesystem::create_directory(path_ + "/empty");
  EXPECT_EQ(RunMoesaic({"ckpt", "show", path_ + "/empty"}).exit_code, kExitNotFound);
}

TEST_F(CkptVerbs, ImportMakesACheckpointThatShowDescribes) {
  const std::string to = path_ + "/imported";
  const Outcome imported = RunMoesaic(
      {"ckpt", "import", "--from", "tests/peers/golden/mixtral", "--to", to, "-o", "json"});
  ASSERT_EQ(imported.exit_code, kExitOk) << imported.err;
  EXPECT_EQ(Json::parse(imported.out)["path"], to + "/step-000000000");
  EXPECT_EQ(Json::parse(RunMoesaic({"ckpt", "show", to, "-o", "json"}).out)["contents"], "weights");
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", to}).exit_code, kExitOk);
  const Outcome again =
      RunMoesaic({"ckpt", "import", "--from", "tests/peers/golden/mixtral", "--to", to});
  EXPECT_EQ(again.exit_code, kExitUsage);
  EXPECT_THAT(again.err, HasSubstr("has checkpoints already"));
}

}  // namespace
}  // namespace moesaic
