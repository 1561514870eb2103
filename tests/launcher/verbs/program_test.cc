// The command line of `moesaic`, run in process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/launcher/verbs/run_moesaic.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(Program, HelpIsSuccessOnStdout) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"--help"}, {"version", "--help"}, {"config", "check", "--help"}}) {
    const VerbOutcome outcome = RunMoesaic(arguments);
    EXPECT_EQ(outcome.exit_code, kExitOk);
    EXPECT_THAT(outcome.out, HasSubstr("Usage: moesaic"));
    EXPECT_EQ(outcome.err, "");
  }
}

TEST(Program, WrongCommandLinesAreUsageErrors) {
  EXPECT_EQ(RunMoesaic({}).exit_code, kExitUsage);
  EXPECT_EQ(RunMoesaic({"confg"}).exit_code, kExitUsage);
  EXPECT_THAT(RunMoesaic({"confg"}).err, HasSubstr("did you mean config?"));
  EXPECT_EQ(RunMoesaic({"config"}).exit_code, kExitUsage);
  EXPECT_EQ(RunMoesaic({"config", "check"}).exit_code, kExitUsage);
  EXPECT_EQ(RunMoesaic({"version", "--bulid"}).exit_code, kExitUsage);
  EXPECT_EQ(RunMoesaic({"config", "show", "-f", "configs/quickstart.yaml", "-o", "toml"}).exit_code,
            kExitUsage);
}

TEST(Version, NamesTheBuild) {
  EXPECT_THAT(RunMoesaic({"version"}).out, StartsWith("moesaic "));
  EXPECT_THAT(RunMoesaic({"version", "--build"}).out, HasSubstr("compiler "));
}

TEST(ConfigCheck, AcceptsAShippedFile) {
  const VerbOutcome outcome =
      RunMoesaic({"config", "check", "-f", "configs/quickstart.yaml", "--no-inputs"});
  EXPECT_EQ(outcome.exit_code, kExitOk);
  EXPECT_EQ(outcome.err, "configs/quickstart.yaml is a valid job file\n");
}

TEST(ConfigCheck, PrintsEveryProblemAndExits2) {
  const VerbOutcome outcome =
      RunMoesaic({"config", "check", "-f", "configs/quickstart.yaml", "--no-inputs", "--set",
                  "train.steps=0", "--set", "model.heads=3"});
  EXPECT_EQ(outcome.exit_code, kExitUsage);
  EXPECT_EQ(outcome.err,
            "--set: train.steps: must be at least 1, not 0\n"
            "configs/quickstart.yaml:8:13: model.kv_heads: heads (3) is not a multiple of kv_heads "
            "(4)\n"
            "--set: model.heads: hidden (256) is not a multiple of heads (3): change one, or give "
            "head_width\n"
            "moesaic: refused configs/quickstart.yaml: 3 problems\n");
  EXPECT_EQ(outcome.out, "");
}

TEST(ConfigCheck, LooksForTheInputs) {
  const VerbOutcome outcome = RunMoesaic({"config", "check", "-f", "configs/quickstart.yaml",
                                          "--set", "data.tokenizer=/nonexistent/bpe.model"});
  EXPECT_EQ(outcome.exit_code, kExitUsage);
  EXPECT_THAT(outcome.err,
              HasSubstr("--set: data.tokenizer: there is no file /nonexistent/bpe.model\n"));
}

TEST(ConfigCheck, AMissingJobFileIsAUsageError) {
  const VerbOutcome outcome = RunMoesaic({"config", "check", "-f", "nowhere.yaml"});
  EXPECT_EQ(outcome.exit_code, kExitUsage);
  EXPECT_EQ(outcome.err, "moesaic: there is no job file nowhere.yaml\n");
}

TEST(ConfigShow, PrintsWhatWasGivenOrEverything) {
  const std::vector<std::string> show = {"config", "show", "-f", "configs/quickstart.yaml"};
  const std::map<std::string, std::string> environment = {{"MOESAIC_TRAIN__STEPS", "70"}};
  const VerbOutcome given = RunMoesaic(show, environment);
  EXPECT_EQ(given.exit_code, kExitOk);
  EXPECT_THAT(given.out, HasSubstr("\n  steps: 70\n"));
  EXPECT_THAT(given.out, ::testing::Not(HasSubstr("lease_ttl: auto")));
  std::vector<std::string> resolved = show;
  resolved.push_back("--resolved");
  EXPECT_THAT(RunMoesaic(resolved, environment).out, HasSubstr("# MOESAIC_TRAIN__STEPS\n"));
  resolved.insert(resolved.end(), {"-o", "json"});
  EXPECT_THAT(RunMoesaic(resolved).out, HasSubstr("\"renormalize\": true"));
}

}  // namespace
}  // namespace moesaic
