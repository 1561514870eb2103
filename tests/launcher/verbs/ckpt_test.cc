// moesaic ckpt, run in process.
#include "launcher/verbs/ckpt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/base/scratch_folder.h"
#include "tests/launcher/verbs/run_moesaic.h"
#include "tests/trainer/checkpoint/tiny_job.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

class CkptVerbs : public ::testing::Test {
 protected:
  CkptVerbs() {
    root_ = *CheckpointRoot::Open(&FileSystem::System(), path_);
    for (uint64_t step : {100, 200}) {
      const auto committed = CommitTiny(&FileSystem::System(), root_.get(), 2, step, 1);
      EXPECT_TRUE(committed.ok()) << committed.status();
    }
  }

  const ScratchFolder scratch_;
  const std::string path_ = scratch_ / "checkpoints";
  std::unique_ptr<CheckpointRoot> root_;
};

TEST_F(CkptVerbs, LsListsEveryStep) {
  const VerbOutcome text = RunMoesaic({"ckpt", "ls", path_});
  EXPECT_EQ(text.exit_code, kExitOk);
  EXPECT_THAT(text.out, HasSubstr("         200  1970-01-01T00:00:01Z"));
  const Json json = RunMoesaic({"ckpt", "ls", path_, "-o", "json"}).json();
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
  const Json json = RunMoesaic({"ckpt", "show", path_, "--objects", "-o", "json"}).json();
  EXPECT_EQ(json["step"], 200);
  EXPECT_EQ(json["samples"], 800);
  EXPECT_EQ(json["object_list"].size(), json["objects"].get<size_t>());
  const VerbOutcome text = RunMoesaic({"ckpt", "show", root_->StepPath(100), "--objects"});
  EXPECT_THAT(text.out, HasSubstr("step               100"));
  EXPECT_THAT(text.out, HasSubstr("adam_v/layers.1.moe.experts.2.down"));
}

TEST_F(CkptVerbs, VerifyNamesTheDamageAndExits8) {
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", "--all", path_}).exit_code, kExitOk);
  DamageTiny(root_->StepPath(100));
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", path_}).exit_code, kExitOk);
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", "--quick", "--all", path_}).exit_code, kExitOk);
  const VerbOutcome all = RunMoesaic({"ckpt", "verify", "--all", "--threads", "3", path_});
  EXPECT_EQ(all.exit_code, kExitCheckpointInvalid);
  EXPECT_THAT(all.out, HasSubstr("file x-L001-E0000.safetensors: the bytes of "
                                 "adam_v/layers.1.moe.experts.0.down do not match"));
  const VerbOutcome one = RunMoesaic({"ckpt", "verify", root_->StepPath(100), "-o", "json"});
  EXPECT_EQ(one.exit_code, kExitCheckpointInvalid);
  EXPECT_FALSE(one.json()["checkpoints"][0]["ok"].get<bool>());
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
  const VerbOutcome imported = RunMoesaic(
      {"ckpt", "import", "--from", "tests/peers/golden/mixtral", "--to", to, "-o", "json"});
  ASSERT_EQ(imported.exit_code, kExitOk) << imported.err;
  EXPECT_EQ(imported.json()["path"], to + "/step-000000000");
  EXPECT_EQ(RunMoesaic({"ckpt", "show", to, "-o", "json"}).json()["contents"], "weights");
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", to}).exit_code, kExitOk);
  const VerbOutcome again =
      RunMoesaic({"ckpt", "import", "--from", "tests/peers/golden/mixtral", "--to", to});
  EXPECT_EQ(again.exit_code, kExitUsage);
  EXPECT_THAT(again.err, HasSubstr("has checkpoints already"));
}

TEST_F(CkptVerbs, LsSaysWhatIsPinnedKeptAndQuarantined) {
  ASSERT_EQ(RunMoesaic({"ckpt", "pin", path_ + "@100", "--note", "the good one"}).exit_code,
            kExitOk);
  ASSERT_TRUE(CommitTiny(&FileSystem::System(), root_.get(), 1, 300, 1).ok());
  ASSERT_TRUE(root_->Quarantine(300, "a test").ok());
  const Json json = RunMoesaic({"ckpt", "ls", path_, "-o", "json"}).json();
  ASSERT_EQ(json["checkpoints"].size(), 2u);
  EXPECT_TRUE(json["checkpoints"][0]["pinned"].get<bool>());
  EXPECT_EQ(json["checkpoints"][0]["pin_note"], "the good one");
  EXPECT_EQ(json["checkpoints"][0]["kept_for"], Json::array({"pinned", "newest"}));
  EXPECT_FALSE(json["checkpoints"][1]["pinned"].get<bool>());
  ASSERT_EQ(json["quarantined"].size(), 1u);
  EXPECT_EQ(json["quarantined"][0]["step"], 300);
  EXPECT_EQ(json["quarantined"][0]["reason"], "a test");
  const std::string text = RunMoesaic({"ckpt", "ls", path_}).out;
  EXPECT_THAT(text, HasSubstr("pinned,newest"));
  EXPECT_THAT(text, HasSubstr("a test"));
}

TEST_F(CkptVerbs, PinProtectsFromRmAndUnpinLetsGo) {
  const std::string step = root_->StepPath(100);
  ASSERT_EQ(RunMoesaic({"ckpt", "pin", step}).exit_code, kExitOk);
  const Json shown = RunMoesaic({"ckpt", "show", step, "-o", "json"}).json();
  EXPECT_TRUE(shown["pinned"].get<bool>());
  const VerbOutcome refused = RunMoesaic({"ckpt", "rm", path_ + "@100"});
  EXPECT_EQ(refused.exit_code, kExitUsage);
  EXPECT_THAT(refused.err, HasSubstr("is pinned; --force"));
  ASSERT_EQ(RunMoesaic({"ckpt", "unpin", step + "/"}).exit_code, kExitOk);
  const VerbOutcome removed = RunMoesaic({"ckpt", "rm", path_ + "@100", "-o", "json"});
  EXPECT_EQ(removed.exit_code, kExitOk);
  EXPECT_EQ(removed.json()["removed"], Json::array({step}));
  EXPECT_FALSE(std::filesystem::exists(step));
  const VerbOutcome last = RunMoesaic({"ckpt", "rm", path_ + "@200"});
  EXPECT_EQ(last.exit_code, kExitUsage);
  EXPECT_THAT(last.err, HasSubstr("the only checkpoint"));
  EXPECT_EQ(RunMoesaic({"ckpt", "rm", path_ + "@200", "--force"}).exit_code, kExitOk);
  EXPECT_TRUE(std::filesystem::is_empty(path_ + "/.trash"));
}

TEST_F(CkptVerbs, KeepingNamesOneStep) {
  for (const char* verb : {"pin", "unpin", "rm"}) {
    EXPECT_EQ(RunMoesaic({"ckpt", verb, path_}).exit_code, kExitUsage) << verb;
    EXPECT_EQ(RunMoesaic({"ckpt", verb, path_ + "/none@1"}).exit_code, kExitNotFound) << verb;
  }
  EXPECT_EQ(RunMoesaic({"ckpt", "pin", path_ + "@150"}).exit_code, kExitNotFound);
  EXPECT_EQ(RunMoesaic({"ckpt", "rm", path_ + "@150"}).exit_code, kExitNotFound);
}

TEST_F(CkptVerbs, ShowTellsWhatWasReused) {
  for (uint64_t step : {301, 402}) {
    ASSERT_TRUE(CommitTiny(&FileSystem::System(), root_.get(), 2, step, 1, /*frozen=*/1).ok());
  }
  const Json json = RunMoesaic({"ckpt", "show", path_ + "@402", "-o", "json"}).json();
  EXPECT_EQ(json["reused_bytes"],
            std::filesystem::file_size(root_->StepPath(402) + "/x-L001-E0000.safetensors"));
}

TEST_F(CkptVerbs, DiffComparesAcrossLayouts) {
  const Json same =
      RunMoesaic({"ckpt", "diff", path_ + "@100", path_ + "@100", "-o", "json"}).json();
  EXPECT_TRUE(same["same"].get<bool>());
  EXPECT_EQ(same["objects"]["changed"].size(), 0u);

  // Step 300 has the values of 200 (TinyValue counts steps modulo 100), from three ranks.
  ASSERT_TRUE(CommitTiny(&FileSystem::System(), root_.get(), 3, 300, 1).ok());
  const Json moved =
      RunMoesaic({"ckpt", "diff", path_ + "@200", path_ + "@300", "-o", "json"}).json();
  EXPECT_FALSE(moved["same"].get<bool>());
  EXPECT_EQ(moved["objects"]["changed"].size(), 0u);
  EXPECT_EQ(moved["objects"]["same"], TinyCatalog().size() * 3);
  EXPECT_THAT(moved["state"].get<std::vector<std::string>>(),
              testing::Contains("samples: 800 -> 1200"));

  // Step 401 differs by 5000 everywhere but in the frozen expert.
  ASSERT_TRUE(CommitTiny(&FileSystem::System(), root_.get(), 2, 401, 1, /*frozen=*/1).ok());
  const Json changed =
      RunMoesaic({"ckpt", "diff", path_ + "@200", path_ + "@401", "--values", "-o", "json"}).json();
  EXPECT_EQ(changed["objects"]["same"], 6);
  EXPECT_EQ(changed["objects"]["changed"].size(), TinyCatalog().size() * 3u - 6u);
  EXPECT_NEAR(changed["objects"]["changed"][0]["largest_difference"].get<double>(), 5000, 1);
  EXPECT_THAT(RunMoesaic({"ckpt", "diff", path_ + "@200", path_ + "@401"}).out,
              HasSubstr("6 objects are the same"));

  const std::string imported = path_ + "/imported";
  ASSERT_EQ(RunMoesaic({"ckpt", "import", "--from", "tests/peers/golden/mixtral", "--to", imported})
                .exit_code,
            kExitOk);
  const Json other = RunMoesaic({"ckpt", "diff", path_ + "@200", imported, "-o", "json"}).json();
  EXPECT_THAT(other["objects"]["removed"].get<std::vector<std::string>>(),
              testing::Contains("adam_m/embedding"));
  EXPECT_THAT(other["job"].get<std::vector<std::string>>(),
              testing::Contains(HasSubstr("model.vocabulary: 16 -> 64")));
}

TEST_F(CkptVerbs, ExportIsTheInverseOfImport) {
  const std::string imported = path_ + "/imported", hf = path_ + "/hf", again = path_ + "/again";
  ASSERT_EQ(RunMoesaic({"ckpt", "import", "--from", "tests/peers/golden/mixtral", "--to", imported})
                .exit_code,
            kExitOk);
  const VerbOutcome exported = RunMoesaic({"ckpt", "export", imported, "--to", hf, "--dtype", "f32",
                                           "--max-file", "20kb", "-o", "json"});
  ASSERT_EQ(exported.exit_code, kExitOk) << exported.err;
  EXPECT_GT(exported.json()["files"], 1);
  EXPECT_TRUE(std::filesystem::exists(hf + "/model.safetensors.index.json"));
  ASSERT_EQ(RunMoesaic({"ckpt", "import", "--from", hf, "--to", again}).exit_code, kExitOk);
  const Json diff = RunMoesaic({"ckpt", "diff", imported, again, "-o", "json"}).json();
  EXPECT_TRUE(diff["same"].get<bool>()) << diff;
  const VerbOutcome twice = RunMoesaic({"ckpt", "export", imported, "--to", hf});
  EXPECT_EQ(twice.exit_code, kExitUsage);
  EXPECT_THAT(twice.err, HasSubstr("is not empty"));
  // The tiny job has a layer without experts.
  const VerbOutcome refused = RunMoesaic({"ckpt", "export", path_, "--to", path_ + "/no"});
  EXPECT_EQ(refused.exit_code, kExitUsage);
  EXPECT_THAT(refused.err, HasSubstr("model.moe.pattern"));
}

TEST_F(CkptVerbs, ExportAsAnArchitectureThatCannotSayTheModelGivesTheReason) {
  const std::string imported = path_ + "/imported";
  ASSERT_EQ(
      RunMoesaic({"ckpt", "import", "--from", "tests/peers/golden/qwen3_moe", "--to", imported})
          .exit_code,
      kExitOk);
  const VerbOutcome refused =
      RunMoesaic({"ckpt", "export", imported, "--to", path_ + "/no", "--as", "mixtral"});
  EXPECT_EQ(refused.exit_code, kExitUsage);
  EXPECT_THAT(refused.err, HasSubstr("no counterpart in mixtral: model.moe.pattern"));
  EXPECT_EQ(
      RunMoesaic({"ckpt", "export", imported, "--to", path_ + "/no", "--as", "gpt2"}).exit_code,
      kExitUsage);
  const VerbOutcome exported = RunMoesaic(
      {"ckpt", "export", imported, "--to", path_ + "/hf", "--as", "qwen3_moe", "-o", "json"});
  EXPECT_EQ(exported.json()["architecture"], "qwen3_moe") << exported.err;
}

TEST_F(CkptVerbs, UpcycleMakesACheckpointOfTheJob) {
  const std::string job = path_ + "/job.yaml", to = path_ + "/upcycled";
  std::ofstream(job) << R"(
name: upcycled
model: {layers: 2, hidden: 32, heads: 4, kv_heads: 2, sequence: 64, vocabulary: 64,
        norm_epsilon: 1.0e-5, moe: {experts: 4, active: 2, expert_width: 48}}
data: {train: [{path: none}]}
train: {steps: 10, global_batch: 4, micro_batch: 2}
)";
  const std::vector<std::string> command = {
      "ckpt", "upcycle", "--from", "tests/peers/golden/llama", "-f", job, "--to", to};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), command.begin(), command.end());
    return RunMoesaic(more);
  };
  const VerbOutcome masked = with({"--mask", "0.5"});
  EXPECT_EQ(masked.exit_code, kExitUsage);
  EXPECT_THAT(masked.err, HasSubstr("--method spawn"));
  EXPECT_EQ(with({"--method", "spawn", "--mask", "1"}).exit_code, kExitUsage);
  const VerbOutcome moments = with({"--keep-optimizer"});
  EXPECT_EQ(moments.exit_code, kExitUsage);
  EXPECT_THAT(moments.err, HasSubstr("there are no moments"));
  const VerbOutcome pieces = with({"--method", "granular", "--set", "model.moe.expert_width=24"});
  EXPECT_EQ(pieces.exit_code, kExitUsage);
  EXPECT_THAT(pieces.err, HasSubstr("recipe.router.weight.scale must be 2"));
  EXPECT_FALSE(std::filesystem::exists(to));

  const VerbOutcome made = with({"-o", "json"});
  ASSERT_EQ(made.exit_code, kExitOk) << made.err;
  EXPECT_EQ(made.json()["path"], to + "/step-000000000");
  const Json shown = RunMoesaic({"ckpt", "show", to, "-o", "json"}).json();
  EXPECT_EQ(shown["contents"], "weights");
  EXPECT_EQ(shown["layout"], "upcycled (copy) from tests/peers/golden/llama");
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", to}).exit_code, kExitOk);
}

TEST_F(CkptVerbs, ReshardPlanSaysWhoReadsWhat) {
  const VerbOutcome outcome = RunMoesaic(
      {"ckpt", "reshard-plan", path_, "--ranks", "6", "--expert", "3", "--reads", "-o", "json"});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  const Json plan = outcome.json();
  ASSERT_EQ(plan["plan"].size(), 6u);
  int experts = 0;
  uint64_t total = 0;
  for (const Json& rank : plan["plan"]) {
    experts += rank["experts"].get<int>();
    uint64_t bytes = 0;
    for (const Json& read : rank["reads"]) bytes += read["bytes"].get<uint64_t>();
    EXPECT_EQ(rank["bytes"], bytes);
    total += bytes;
  }
  EXPECT_EQ(experts, 3);
  EXPECT_EQ(plan["bytes"], total);
  // Alone, a rank reads everything once.
  const Json alone =
      RunMoesaic({"ckpt", "reshard-plan", path_, "--ranks", "1", "-o", "json"}).json();
  EXPECT_EQ(alone["bytes"], alone["stored_bytes"]);
  EXPECT_EQ(alone["plan"][0]["experts"], 3);
  EXPECT_THAT(RunMoesaic({"ckpt", "reshard-plan", path_, "--ranks", "5"}).out,
              HasSubstr("5 ranks, expert 1:"));
  EXPECT_EQ(RunMoesaic({"ckpt", "reshard-plan", path_, "--ranks", "6", "--expert", "4"}).exit_code,
            kExitUsage);
}

TEST_F(CkptVerbs, ReshardPlanPlacesExpertsByTheRecordedLoad) {
  const auto experts = [&] {
    const Json plan =
        RunMoesaic({"ckpt", "reshard-plan", path_, "--ranks", "2", "-o", "json"}).json();
    return std::vector<int>{plan["plan"][0]["experts"], plan["plan"][1]["experts"]};
  };
  EXPECT_EQ(experts(), (std::vector<int>{2, 1}));  // by number: nothing is recorded yet
  ASSERT_TRUE(CommitTinyWithLoad(&FileSystem::System(), root_.get(), 2, 300, 1, {10, 1, 1}).ok());
  EXPECT_EQ(experts(), (std::vector<int>{1, 2}));  // the busy one alone
  EXPECT_THAT(
      RunMoesaic({"ckpt", "reshard-plan", path_, "--ranks", "2"}).out,
      HasSubstr("experts placed by recorded load: the busiest rank takes 1.67 of the mean"));
}

TEST_F(CkptVerbs, EveryVerbHasAnExample) {
  for (const char* verb : {"ls", "show", "verify", "diff", "pin", "unpin", "rm", "import", "export",
                           "upcycle", "reshard-plan"}) {
    // Indented, as examples are.
    const VerbOutcome help = RunMoesaic({"ckpt", verb, "--help"});
    EXPECT_EQ(help.exit_code, kExitOk);
    EXPECT_THAT(help.out, HasSubstr(std::string("\n  moesaic ckpt ") + verb));
  }
}

}  // namespace
}  // namespace moesaic
