// moesaic ckpt, run in process.
#include "launcher/verbs/ckpt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

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
  CLI::App program("", "moesaic");
  program.require_subcommand(1);
  RegisterCkpt(program, context);
  // CLI11 takes the arguments from the back.
  std::ranges::reverse(arguments);
  try {
    program.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return {error.get_exit_code() == 0 ? kExitOk : kExitUsage, program.help(), error.what()};
  }
  return {context.exit_code, out.str(), err.str()};
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
    // A file of its own: step 200 may share this one.
    std::filesystem::copy_file(file, file + ".copy");
    std::filesystem::rename(file + ".copy", file);
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
  const Outcome all = RunMoesaic({"ckpt", "verify", "--all", "--threads", "3", path_});
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

TEST_F(CkptVerbs, LsSaysWhatIsPinnedKeptAndQuarantined) {
  ASSERT_EQ(RunMoesaic({"ckpt", "pin", path_ + "@100", "--note", "the good one"}).exit_code, kExitOk);
  ASSERT_TRUE(CommitTiny(&FileSystem::System(), root_.get(), 1, 300, 1).ok());
  ASSERT_TRUE(root_->Quarantine(300, "a test").ok());
  const Json json = Json::parse(RunMoesaic({"ckpt", "ls", path_, "-o", "json"}).out);
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
  const Json shown = Json::parse(RunMoesaic({"ckpt", "show", step, "-o", "json"}).out);
  EXPECT_TRUE(shown["pinned"].get<bool>());
  const Outcome refused = RunMoesaic({"ckpt", "rm", path_ + "@100"});
  EXPECT_EQ(refused.exit_code, kExitUsage);
  EXPECT_THAT(refused.err, HasSubstr("is pinned; --force"));
  ASSERT_EQ(RunMoesaic({"ckpt", "unpin", step + "/"}).exit_code, kExitOk);
  const Outcome removed = RunMoesaic({"ckpt", "rm", path_ + "@100", "-o", "json"});
  EXPECT_EQ(removed.exit_code, kExitOk);
  EXPECT_EQ(Json::parse(removed.out)["removed"], Json::array({step}));
  EXPECT_FALSE(std::filesystem::exists(step));
  const Outcome last = RunMoesaic({"ckpt", "rm", path_ + "@200"});
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
  const Json json = Json::parse(RunMoesaic({"ckpt", "show", path_ + "@402", "-o", "json"}).out);
  EXPECT_EQ(json["reused_bytes"],
            std::filesystem::file_size(root_->StepPath(402) + "/x-L001-E0000.safetensors"));
}

TEST_F(CkptVerbs, DiffComparesAcrossLayouts) {
  const Json same = Json::parse(
      RunMoesaic({"ckpt", "diff", path_ + "@100", path_ + "@100", "-o", "json"}).out);
  EXPECT_TRUE(same["same"].get<bool>());
  EXPECT_EQ(same["objects"]["changed"].size(), 0u);

  // Step 300 has the values of 200 (TinyValue counts steps modulo 100), from three ranks.
  ASSERT_TRUE(CommitTiny(&FileSystem::System(), root_.get(), 3, 300, 1).ok());
  const Json moved = Json::parse(
      RunMoesaic({"ckpt", "diff", path_ + "@200", path_ + "@300", "-o", "json"}).out);
  EXPECT_FALSE(moved["same"].get<bool>());
  EXPECT_EQ(moved["objects"]["changed"].size(), 0u);
  EXPECT_EQ(moved["objects"]["same"], TinyCatalog().size() * 3);
  EXPECT_THAT(moved["state"].get<std::vector<std::string>>(),
              testing::Contains("samples: 800 -> 1200"));

  // Step 401 differs by 5000 everywhere but in the frozen expert.
  ASSERT_TRUE(CommitTiny(&FileSystem::System(), root_.get(), 2, 401, 1, /*frozen=*/1).ok());
  const Json changed = Json::parse(
      RunMoesaic({"ckpt", "diff", path_ + "@200", path_ + "@401", "--values", "-o", "json"}).out);
  EXPECT_EQ(changed["objects"]["same"], 6);
  EXPECT_EQ(changed["objects"]["changed"].size(), TinyCatalog().size() * 3u - 6u);
  EXPECT_NEAR(changed["objects"]["changed"][0]["largest_difference"].get<double>(), 5000, 1);
  EXPECT_THAT(RunMoesaic({"ckpt", "diff", path_ + "@200", path_ + "@401"}).out,
              HasSubstr("6 objects are the same"));

  const std::string imported = path_ + "/imported";
  ASSERT_EQ(RunMoesaic({"ckpt", "import", "--from", "tests/peers/golden/mixtral", "--to", imported})
                .exit_code,
            kExitOk);
  const Json other =
      Json::parse(RunMoesaic({"ckpt", "diff", path_ + "@200", imported, "-o", "json"}).out);
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
  const Outcome exported = RunMoesaic(
      {"ckpt", "export", imported, "--to", hf, "--dtype", "f32", "--max-file", "20kb", "-o", "json"});
  ASSERT_EQ(exported.exit_code, kExitOk) << exported.err;
  EXPECT_GT(Json::parse(exported.out)["files"], 1);
  EXPECT_TRUE(std::filesystem::exists(hf + "/model.safetensors.index.json"));
  ASSERT_EQ(RunMoesaic({"ckpt", "import", "--from", hf, "--to", again}).exit_code, kExitOk);
  const Json diff = Json::parse(RunMoesaic({"ckpt", "diff", imported, again, "-o", "json"}).out);
  EXPECT_TRUE(diff["same"].get<bool>()) << diff;
  const Outcome twice = RunMoesaic({"ckpt", "export", imported, "--to", hf});
  EXPECT_EQ(twice.exit_code, kExitUsage);
  EXPECT_THAT(twice.err, HasSubstr("is not empty"));
  // The tiny job has a layer without experts.
  const Outcome refused = RunMoesaic({"ckpt", "export", path_, "--to", path_ + "/no"});
  EXPECT_EQ(refused.exit_code, kExitUsage);
  EXPECT_THAT(refused.err, HasSubstr("model.moe.pattern"));
}

TEST_F(CkptVerbs, ExportAsAnArchitectureThatCannotSayTheModelGivesTheReason) {
  const std::string imported = path_ + "/imported";
  ASSERT_EQ(RunMoesaic({"ckpt", "import", "--from", "tests/peers/golden/qwen3_moe", "--to", imported})
                .exit_code,
            kExitOk);
  const Outcome refused =
      RunMoesaic({"ckpt", "export", imported, "--to", path_ + "/no", "--as", "mixtral"});
  EXPECT_EQ(refused.exit_code, kExitUsage);
  EXPECT_THAT(refused.err, HasSubstr("no counterpart in mixtral: model.moe.pattern"));
  EXPECT_EQ(RunMoesaic({"ckpt", "export", imported, "--to", path_ + "/no", "--as", "gpt2"}).exit_code,
            kExitUsage);
  const Outcome exported = RunMoesaic(
      {"ckpt", "export", imported, "--to", path_ + "/hf", "--as", "qwen3_moe", "-o", "json"});
  EXPECT_EQ(Json::parse(exported.out)["architecture"], "qwen3_moe") << exported.err;
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
  const Outcome masked = with({"--mask", "0.5"});
  EXPECT_EQ(masked.exit_code, kExitUsage);
  EXPECT_THAT(masked.err, HasSubstr("--method spawn"));
  EXPECT_EQ(with({"--method", "spawn", "--mask", "1"}).exit_code, kExitUsage);
  const Outcome moments = with({"--keep-optimizer"});
  EXPECT_EQ(moments.exit_code, kExitUsage);
  EXPECT_THAT(moments.err, HasSubstr("there are no moments"));
  const Outcome pieces = with({"--method", "granular", "--set", "model.moe.expert_width=24"});
  EXPECT_EQ(pieces.exit_code, kExitUsage);
  EXPECT_THAT(pieces.err, HasSubstr("recipe.router.weight.scale must be 2"));
  EXPECT_FALSE(std::filesystem::exists(to));

  const Outcome made = with({"-o", "json"});
  ASSERT_EQ(made.exit_code, kExitOk) << made.err;
  EXPECT_EQ(Json::parse(made.out)["path"], to + "/step-000000000");
  const Json shown = Json::parse(RunMoesaic({"ckpt", "show", to, "-o", "json"}).out);
  EXPECT_EQ(shown["contents"], "weights");
  EXPECT_EQ(shown["layout"], "upcycled (copy) from tests/peers/golden/llama");
  EXPECT_EQ(RunMoesaic({"ckpt", "verify", to}).exit_code, kExitOk);
}

TEST_F(CkptVerbs, ReshardPlanSaysWhoReadsWhat) {
  const Outcome outcome = RunMoesaic(
      {"ckpt", "reshard-plan", path_, "--ranks", "6", "--expert", "3", "--reads", "-o", "json"});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  const Json plan = Json::parse(outcome.out);
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
      Json::parse(RunMoesaic({"ckpt", "reshard-plan", path_, "--ranks", "1", "-o", "json"}).out);
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
        Json::parse(RunMoesaic({"ckpt", "reshard-plan", path_, "--ranks", "2", "-o", "json"}).out);
    return std::vector<int>{plan["plan"][0]["experts"], plan["plan"][1]["experts"]};
  };
  EXPECT_EQ(experts(), (std::vector<int>{2, 1}));  // by number: nothing is recorded yet
  const std::string staging = *root_->BeginStaging(300, 1);
  auto reports = *PersistTiny(&FileSystem::System(), staging, 2, 300, 1);
  for (ShardsPersisted& report : reports) {
    LayerLoad* load = report.mutable_state()->add_expert_load();
    load->set_layer(1);
    for (const double tokens : {10, 1, 1}) load->add_tokens(tokens);
  }
  ASSERT_TRUE(root_->Commit(TinyRequest(staging, reports, 1)).ok());
  EXPECT_EQ(experts(), (std::vector<int>{1, 2}));  // the busy one alone
  EXPECT_THAT(RunMoesaic({"ckpt", "reshard-plan", path_, "--ranks", "2"}).out,
              HasSubstr("experts placed by recorded load: the busiest rank takes 1.67 of the mean"));
}

TEST_F(CkptVerbs, EveryVerbHasAnExample) {
  for (const char* verb : {"ls", "show", "verify", "diff", "pin", "unpin", "rm", "import", "export",
                           "upcycle", "reshard-plan"}) {
    std::ostringstream out, err;
    VerbContext context{
        .out = out, .err = err, .environment = {}, .program_path = "", .vocabulary_of = {}};
    CLI::App program("", "moesaic");
    RegisterCkpt(program, context);
    const std::string help = program.get_subcommand("ckpt")->get_subcommand(verb)->help();
    EXPECT_THAT(help, HasSubstr(std::string("moesaic ckpt ") + verb)) << help;
  }
}

}  // namespace
}  // namespace moesaic
