// What a job file may say, what is laid over it, and where values come from.
#include "launcher/config/job_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/base/scratch_folder.h"
#include "tests/launcher/config/small_job.h"

namespace moesaic {
namespace {

LoadedJob Loaded(const JobSources& sources) {
  absl::StatusOr<LoadedJob> job = LoadJob(sources);
  EXPECT_TRUE(job.ok()) << job.status();
  return job.ok() ? *std::move(job) : LoadedJob();
}

LoadedJob Loaded(const char* part, const std::string& by) {
  return Loaded(YamlSources(SmallJobWith(part, by)));
}

TEST(JobFile, BindsEveryKindOfValue) {
  const JobSpec spec = Loaded("name: small\n",
                              "name: small  # comment\n"
                              "recipe: {router: {score: sigmoid, weight: {renormalize: false}}}\n"
                              "health: {lease_ttl: 200ms, failure_window: '1h30m'}\n"
                              "run: {dir: \"no\"}\n"
                              "launch:\n"
                              "  backend: mpirun\n")
                           .spec;
  EXPECT_EQ(spec.model().layers(), 4u);
  EXPECT_EQ(spec.recipe().router().score(), SIGMOID);
  EXPECT_FALSE(spec.recipe().router().weight().renormalize());
  EXPECT_EQ(spec.health().lease_ttl(), 0.2);
  EXPECT_EQ(spec.health().failure_window(), 5400);
  EXPECT_EQ(spec.run().dir(), "no");
  EXPECT_EQ(spec.launch().backend(), MPIRUN);
}

TEST(JobFile, TakesAOneofAsBareWordOrMap) {
  const auto train = [](const std::string& more) {
    return Loaded("micro_batch: 4", absl::StrCat("micro_batch: 4, ", more)).spec.train();
  };
  EXPECT_EQ(train("optimizer: sgd").optimizer().sgd().lr(), 0.1);
  EXPECT_EQ(train("optimizer: {sgd: {lr: 2}}").optimizer().sgd().lr(), 2);
  EXPECT_TRUE(train("schedule: constant").schedule().has_constant());
  const ScheduleSpec wsd = train("schedule: {warmup_steps: 5, wsd: {decay_steps: 9}}").schedule();
  EXPECT_EQ(wsd.warmup_steps(), 5u);
  EXPECT_EQ(wsd.wsd().decay_steps(), 9u);
}

TEST(JobFile, TakesAPatternAsBareWordOrMap) {
  EXPECT_EQ(Loaded(YamlSources(kSmallJob)).spec.model().moe().pattern().every(), 1u);
  const JobSpec spec =
      Loaded("pattern: all}", "pattern: {every: 2, first: 1}}\n  dense_width: 8").spec;
  EXPECT_EQ(spec.model().moe().pattern().every(), 2u);
  EXPECT_EQ(spec.model().moe().pattern().first(), 1u);
}

TEST(JobFile, AutoMeansUnset) {
  const LoadedJob job = Loaded("name: small\n",
                               "name: small\n"
                               "parallel: {expert: auto}\n"
                               "launch: {allow_root: auto}\n");
  EXPECT_FALSE(job.spec.parallel().has_expert());
  EXPECT_FALSE(job.spec.launch().has_allow_root());
}

TEST(JobFile, DerivedFieldsMayBeAuto) {
  const LoadedJob job = Loaded("  heads: 4\n", "  heads: 4\n  kv_heads: auto\n");
  EXPECT_EQ(job.spec.model().kv_heads(), 4u);
  EXPECT_EQ(job.origins.at("model.kv_heads").kind, Origin::kDerived);
}

TEST(JobFile, ReadsTextproto) {
  JobSources sources;
  sources.text = JobText{"job.textproto",
                         "name: \"small\"  # comment\n"
                         "model { layers: 4 hidden: 64 heads: 4 sequence: 32 vocabulary: 512\n"
                         "  moe { experts: 8 active: 2 expert_width: 96 } }\n"
                         "data { train { path: \"corpus/train\" } }\n"
                         "train { steps: 100 global_batch: 16 micro_batch: 4 }\n",
                         true};
  const LoadedJob job = Loaded(sources);
  EXPECT_EQ(job.spec.SerializeAsString(), Loaded(YamlSources(kSmallJob)).spec.SerializeAsString());
  EXPECT_EQ(job.origins.at("model.hidden").text, "job.textproto:2:19");
  EXPECT_EQ(job.origins.at("data.train[0].path").text, "job.textproto:4:16");
}

TEST(Precedence, DefaultsFileEnvironmentSetFlags) {
  JobSources sources = YamlSources(SmallJobWith("micro_batch: 4", "micro_batch: 4, seed: 2"));
  EXPECT_EQ(Loaded(YamlSources(kSmallJob)).spec.train().seed(), 1u);
  EXPECT_EQ(Loaded(sources).spec.train().seed(), 2u);
  sources.environment["MOESAIC_TRAIN__SEED"] = "3";
  EXPECT_EQ(Loaded(sources).spec.train().seed(), 3u);
  sources.sets = {"train.seed=4", "train.seed=5"};
  EXPECT_EQ(Loaded(sources).spec.train().seed(), 5u);
  sources.flags = {{"--seed", "train.seed", "6"}};
  EXPECT_EQ(Loaded(sources).spec.train().seed(), 6u);
  EXPECT_EQ(Loaded(sources).origins.at("train.seed").text, "--seed");
}

TEST(Origins, NameThePlaceOfEveryValue) {
  JobSources sources = YamlSources(kSmallJob);
  sources.environment = {{"MOESAIC_MODEL__HIDDEN", "128"}, {"PATH", "/bin"}};
  sources.sets = {"train.steps=7"};
  const JobOrigins origins = Loaded(sources).origins;
  EXPECT_EQ(origins.at("model.layers").text, "job.yaml:3:11");
  EXPECT_EQ(origins.at("data.train[0].path").text, "job.yaml:9:23");
  EXPECT_EQ(origins.at("model.hidden").text, "MOESAIC_MODEL__HIDDEN");
  EXPECT_EQ(origins.at("train.steps").text, "--set");
  EXPECT_EQ(origins.at("train.seed").text, "default");
  EXPECT_EQ(origins.at("data.train[0].weight").text, "default");
  EXPECT_EQ(origins.at("model.head_width").text, "derived");
  EXPECT_EQ(origins.at("run.dir").text, "derived");
}

TEST(Origins, OfAReplacedOneofMemberAreForgotten) {
  JobSources sources =
      YamlSources(SmallJobWith("micro_batch: 4", "micro_batch: 4, optimizer: {adamw: {lr: 1}}"));
  sources.sets = {"train.optimizer=sgd", "train.optimizer.adamw.beta1=0.5"};
  const LoadedJob job = Loaded(sources);
  EXPECT_EQ(job.spec.train().optimizer().adamw().lr(), 3e-4);
  EXPECT_EQ(job.origins.at("train.optimizer.adamw.lr").text, "default");
  EXPECT_EQ(job.origins.at("train.optimizer.adamw.beta1").text, "--set");
}

TEST(Set, ReachesListsMapsAndBareWords) {
  JobSources sources = YamlSources(kSmallJob);
  sources.sets = {"data.train[0].weight=2",
                  "data.train[1].path=more",
                  "data.validation=[{path: v}]",
                  "train.schedule={linear: {final_factor: 0.5}}",
                  "train.schedule.warmup_steps=3",
                  "model.vocabulary=auto",
                  "data.tokenizer=no"};
  const JobSpec spec = Loaded(sources).spec;
  EXPECT_EQ(spec.data().train(0).weight(), 2);
  EXPECT_EQ(spec.data().train(1).path(), "more");
  EXPECT_EQ(spec.data().validation(0).path(), "v");
  EXPECT_EQ(spec.train().schedule().linear().final_factor(), 0.5);
  EXPECT_EQ(spec.train().schedule().warmup_steps(), 3u);
  EXPECT_FALSE(spec.model().has_vocabulary());
  EXPECT_EQ(spec.data().tokenizer(), "no");
}

TEST(Set, RefusesWhatDoesNotFit) {
  const auto problem = [](const std::string& set) {
    JobSources sources = YamlSources(kSmallJob);
    sources.sets = {set};
    return ProblemsOf(sources);
  };
  EXPECT_EQ(problem("train.stpes=1"),
            "--set: train.stpes: unknown key \"stpes\"; did you mean steps?");
  EXPECT_EQ(problem("train.steps=x"), "--set: train.steps: expected a whole number, got \"x\"");
  EXPECT_EQ(problem("train.steps=0"), "--set: train.steps: must be at least 1, not 0");
  EXPECT_EQ(problem("train.steps.more=1"),
            "--set: train.steps.more: train.steps is a single value");
  EXPECT_EQ(problem("train.steps[0]=1"), "--set: train.steps[0]: train.steps is not a list");
  EXPECT_EQ(problem("data.train.path=x"),
            "--set: data.train.path: data.train is a list: write data.train[0]");
  EXPECT_EQ(problem("data.train[3].path=x"),
            "--set: data.train[3].path: has 1 elements, so the next index is 1, not 3");
  EXPECT_EQ(problem("data.train[x].path=x"),
            "--set: data.train[x].path: \"train[x]\" is not a key with an index such as train[0]");
  EXPECT_EQ(problem("train.schedule={cosine"), "--set: train.schedule: end of map flow not found");
  EXPECT_EQ(problem("train.steps"), "--set train.steps: write it as --set key.path=value");
}

TEST(Environment, NamesFieldsByTwoUnderscores) {
  JobSources sources = YamlSources(kSmallJob);
  sources.environment = {{"MOESAIC_DATA__TRAIN__0__PATH", "other"},
                         {"MOESAIC_NAME", "renamed"},
                         {"MOESAIC_TRAIN__OPTIMIZER", "sgd"},
                         {"MOESAIC_TOKEN", "secret"},
                         {"MOESAIC_LOG_LEVEL", "debug"}};
  const JobSpec spec = Loaded(sources).spec;
  EXPECT_EQ(spec.data().train(0).path(), "other");
  EXPECT_EQ(spec.name(), "renamed");
  EXPECT_TRUE(spec.train().optimizer().has_sgd());
}

TEST(Environment, RefusesUnknownVariables) {
  const auto problem = [](const std::string& name) {
    JobSources sources = YamlSources(kSmallJob);
    sources.environment[name] = "1";
    return ProblemsOf(sources);
  };
  EXPECT_EQ(problem("MOESAIC_TRAIN_STEPS"),
            "MOESAIC_TRAIN_STEPS: no key of the job file has this name; did you mean "
            "MOESAIC_TRAIN__STEPS?");
  EXPECT_EQ(problem("MOESAIC_Z__Q"),
            "MOESAIC_Z__Q: no key of the job file has this name (MOESAIC_TRAIN__STEPS is "
            "train.steps)");
  EXPECT_EQ(problem("MOESAIC_DATA__TRAIN__PATH"),
            "MOESAIC_DATA__TRAIN__PATH: data.train.path: data.train is a list: write "
            "data.train[0]");
  EXPECT_EQ(problem("MOESAIC_MODEL__TIE_HEAD"),
            "MOESAIC_MODEL__TIE_HEAD: model.tie_head: expected true or false, got \"1\"");
}

JobSources TokenizerSources(const char* vocabulary, absl::StatusOr<uint32_t> tokens) {
  JobSources sources = YamlSources(SmallJobWith("  vocabulary: 512\n", vocabulary));
  sources.sets = {"data.tokenizer=bpe.model"};
  sources.vocabulary_of = [tokens](const std::string& path) {
    EXPECT_EQ(path, "bpe.model");
    return tokens;
  };
  return sources;
}

TEST(Vocabulary, IsResolvedFromTheTokenizer) {
  const LoadedJob job = Loaded(TokenizerSources("", 4096));
  EXPECT_EQ(job.spec.model().vocabulary(), 4096u);
  EXPECT_EQ(job.origins.at("model.vocabulary").text, "bpe.model");
  EXPECT_FALSE(job.given.model().has_vocabulary());
}

TEST(Vocabulary, MayBeLargerThanTheTokenizer) {
  EXPECT_EQ(Loaded(TokenizerSources("  vocabulary: 5000\n", 4096)).spec.model().vocabulary(),
            5000u);
}

TEST(Vocabulary, SmallerThanTheTokenizerIsRefused) {
  EXPECT_EQ(ProblemsOf(TokenizerSources("  vocabulary: 512\n", 4096)),
            "job.yaml:7:15: model.vocabulary: must be at least the 4096 tokens of bpe.model, not "
            "512");
}

TEST(Vocabulary, AMissingTokenizerIsAProblemAtItsPlace) {
  EXPECT_EQ(ProblemsOf(TokenizerSources("", absl::NotFoundError("there is no file bpe.model"))),
            "--set: data.tokenizer: there is no file bpe.model");
}

TEST(Inputs, MustExistWhenAskedFor) {
  const ScratchFolder folder;
  JobSources sources = YamlSources(
      SmallJobWith("{path: corpus/train}", absl::StrCat("{path: ", folder.path(), "/tokens}")));
  EXPECT_EQ(ProblemsOf(sources), "");
  sources.check_inputs = true;
  EXPECT_EQ(ProblemsOf(sources),
            absl::StrCat("job.yaml:9:23: data.train[0].path: there is no file ", folder.path(),
                         "/tokens.bin"));
  std::ofstream(folder / "tokens.bin") << "x";
  EXPECT_EQ(ProblemsOf(sources),
            absl::StrCat("job.yaml:9:23: data.train[0].path: there is no file ", folder.path(),
                         "/tokens.idx"));
  std::ofstream(folder / "tokens.idx") << "x";
  EXPECT_EQ(ProblemsOf(sources), "");
}

TEST(ReadJobText, NamesWhatIsWrongWithTheFile) {
  EXPECT_TRUE(absl::IsNotFound(ReadJobText("/nonexistent/job.yaml").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadJobText("/dev/null").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadJobText(::testing::TempDir()).status()));
}

}  // namespace
}  // namespace moesaic
