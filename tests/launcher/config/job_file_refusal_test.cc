// Everything that a job file may not say, with the exact place and words of the refusal.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/launcher/config/small_job.h"

namespace moesaic {
namespace {

struct Refusal {
  const char* label;
  const char* part;  // of kSmallJob
  const char* by;
  const char* problems;
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.label; }

class JobFileRefuses : public ::testing::TestWithParam<Refusal> {};

TEST_P(JobFileRefuses, AtItsPlace) {
  EXPECT_EQ(ProblemsOf(YamlSources(SmallJobWith(GetParam().part, GetParam().by))),
            GetParam().problems);
}

const auto kLabel = [](const auto& refusal) { return refusal.param.label; };

INSTANTIATE_TEST_SUITE_P(
    Keys, JobFileRefuses,
    ::testing::Values(
        Refusal{"Misspelt", "  hidden:", "  hiden:",
                "job.yaml:4:3: model: unknown key \"hiden\"; did you mean hidden?"},
        Refusal{"OfAnotherPlace", "train: {", "train: {lr: 1, ",
                "job.yaml:10:9: train: unknown key \"lr\" here; there is "
                "train.optimizer.adamw.lr, train.optimizer.sgd.lr"},
        Refusal{"Unheard", "expert_width: 96", "expert_width: 96, placement: auto",
                "job.yaml:8:50: model.moe: unknown key \"placement\"; the keys here are experts, "
                "active, expert_width, shared_width, pattern"},
        Refusal{"AtTheTop", "name: small\n", "name: small\nstorge: {}\n",
                "job.yaml:2:1: unknown key \"storge\"; the keys here are name, model, recipe, "
                "data, train, parallel, elastic, launch, health, run, checkpoint"},
        Refusal{"WhereThereAreNone", "micro_batch: 4",
                "micro_batch: 4, schedule: {constant: {x: 1}}",
                "job.yaml:10:77: train.schedule.constant: unknown key \"x\"; there are no keys "
                "here"},
        Refusal{"Duplicate", "  heads: 4\n", "  heads: 4\n  heads: 8\n",
                "job.yaml:6:3: model.heads: duplicate key; the first one is in line 5"},
        Refusal{"Merge", "  heads: 4\n", "  heads: 4\n  <<: {hidden: 32}\n",
                "job.yaml:6:3: model: unknown key \"<<\"; the keys here are layers, hidden, heads, "
                "kv_heads, head_width, sequence, dense_width, vocabulary, tie_head, rope_base, "
                "norm_epsilon, init_std, moe, qk_norm"},
        Refusal{"NotAWord", "  heads: 4\n", "  heads: 4\n  [a]: 1\n",
                "job.yaml:6:3: model: a key must be a word, not a list"},
        Refusal{"TwoMembersOfAOneof", "micro_batch: 4",
                "micro_batch: 4, optimizer: {adamw: {}, sgd: {}}",
                "job.yaml:10:78: train.optimizer.sgd: cannot be given beside adamw: choose one of "
                "them"}),
    kLabel);

INSTANTIATE_TEST_SUITE_P(
    Values, JobFileRefuses,
    ::testing::Values(
        Refusal{"OctalLooking", "layers: 4", "layers: 010",
                "job.yaml:3:11: model.layers: expected a whole number, got \"010\"; a leading zero "
                "looks octal: write 10"},
        Refusal{"Hexadecimal", "layers: 4", "layers: 0x4",
                "job.yaml:3:11: model.layers: expected a whole number, got \"0x4\"; write it in "
                "decimal"},
        Refusal{"QuotedNumber", "layers: 4", "layers: \"4\"",
                "job.yaml:3:11: model.layers: expected a number, got text: remove the quotes"},
        Refusal{"QuotedBoolean", "  heads: 4", "  tie_head: 'true'\n  heads: 4",
                "job.yaml:5:13: model.tie_head: expected true or false, got text: remove the "
                "quotes"},
        Refusal{"Fraction", "layers: 4", "layers: 4.5",
                "job.yaml:3:11: model.layers: expected a whole number, got \"4.5\""},
        Refusal{"TooLargeForItsType", "layers: 4", "layers: 4294967296",
                "job.yaml:3:11: model.layers: expected a whole number of at most 4294967295, got "
                "\"4294967296\""},
        Refusal{"OutOfRange", "layers: 4", "layers: 1025",
                "job.yaml:3:11: model.layers: must be at most 1024, not 1025"},
        Refusal{"BareNo", "name: small", "name: no",
                "job.yaml:1:7: name: expected text, got no: write \"no\""},
        Refusal{"BareNumberAsText", "path: corpus/train", "path: 12e3",
                "job.yaml:9:23: data.train[0].path: expected text, got 12e3: write \"12e3\""},
        Refusal{"YesForABoolean", "  heads: 4", "  tie_head: yes\n  heads: 4",
                "job.yaml:5:13: model.tie_head: expected true or false, got \"yes\"; write true"},
        Refusal{"NotANumber", "micro_batch: 4", "micro_batch: 4, clip_norm: .nan",
                "job.yaml:10:66: train.clip_norm: expected a number, got \".nan\""},
        Refusal{"DurationWithoutUnit", "name: small", "name: small\nhealth: {lease_ttl: 5}",
                "job.yaml:2:21: health.lease_ttl: expected a duration such as 5s, 200ms or 1h30m, "
                "got \"5\"; write 5s for seconds"},
        Refusal{"UnknownEnum", "micro_batch: 4", "micro_batch: 4, precision: BF16",
                "job.yaml:10:66: train.precision: expected one of fp32, bf16, got \"BF16\""},
        Refusal{"UnknownMember", "micro_batch: 4", "micro_batch: 4, optimizer: lion",
                "job.yaml:10:66: train.optimizer: expected a map or one of adamw, sgd, got "
                "\"lion\""},
        Refusal{"UnknownBareWord", "pattern: all", "pattern: some",
                "job.yaml:8:59: model.moe.pattern: expected a map or one of all, got \"some\""},
        Refusal{"AutoForRequired", "layers: 4", "layers: auto",
                "job.yaml:3:11: model.layers: cannot be auto: give a value"},
        Refusal{"AutoForADefault", "micro_batch: 4", "micro_batch: 4, seed: auto",
                "job.yaml:10:61: train.seed: cannot be auto: leave the key out for its default, "
                "1"},
        Refusal{"Nothing", "layers: 4", "layers:",
                "job.yaml:3:3: model.layers: has no value: give one, or leave the key out"},
        Refusal{"ListForAValue", "layers: 4", "layers: [4]",
                "job.yaml:3:11: model.layers: expected a single value, got a list"},
        Refusal{"MapForAList", "[{path: corpus/train}]", "{path: corpus/train}",
                "job.yaml:9:15: data.train: expected a list, got a map; write [{...}] or put - "
                "before it"},
        Refusal{"NothingForAMap", "name: small", "name: small\nrecipe:",
                "job.yaml:2:1: recipe: has no value: give one, or leave the key out"},
        Refusal{"WordForAMap", "name: small", "name: small\nrecipe: top_k",
                "job.yaml:2:9: recipe: expected a map, got \"top_k\""},
        Refusal{"ControlCharacters", "path: corpus/train", "path: \"a\\0b\"",
                "job.yaml:9:23: data.train[0].path: must not hold a NUL character"}),
    kLabel);

INSTANTIATE_TEST_SUITE_P(
    Syntax, JobFileRefuses,
    ::testing::Values(
        Refusal{"Anchor", "layers: 4", "layers: &n 4",
                "job.yaml:3:11: model.layers: anchors are not allowed: write the value out"},
        Refusal{"Tag", "layers: 4", "layers: !!int 4",
                "job.yaml:3:11: model.layers: the tag tag:yaml.org,2002:int is not allowed"},
        Refusal{"AnchorAndAlias", "  layers: 4\n  hidden: 64", "  layers: &n 4\n  hidden: *n",
                "job.yaml:3:11: model.layers: anchors are not allowed: write the value out\n"
                "job.yaml:4:11: model.hidden: aliases are not allowed: write the value out"},
        Refusal{"UnclosedList", "[{path: corpus/train}]", "[{path: corpus/train}",
                "job.yaml:9:36: illegal flow end"},
        Refusal{"TwoDocuments", "name: small\n", "name: small\n---\n",
                "job.yaml:3:1: a second document starts here; a job file is one"}),
    kLabel);

INSTANTIATE_TEST_SUITE_P(
    Rules, JobFileRefuses,
    ::testing::Values(
        Refusal{"MissingField", "  hidden: 64\n", "", "job.yaml:2:1: model.hidden: is required"},
        Refusal{"MissingMessage", "data: {train: [{path: corpus/train}]}\n", "",
                "job.yaml:1:1: data: is required"},
        Refusal{"MissingFieldOfAnElement", "{path: corpus/train}", "{path: a}, {weight: 2}",
                "job.yaml:9:27: data.train[1].path: is required"},
        Refusal{"EmptyList", "[{path: corpus/train}]", "[]",
                "job.yaml:9:8: data.train: is required: list at least one"},
        Refusal{"CrossField", "global_batch: 16", "global_batch: 18",
                "job.yaml:10:35: train.global_batch: must be a multiple of micro_batch (4), not "
                "18"},
        Refusal{"CrossFieldOnADefault", "active: 2", "active: 1",
                "job.yaml:8:29: model.moe.active: 1 with recipe.router.weight.renormalize true "
                "makes every weight 1, so the router would learn nothing from the loss: set "
                "renormalize to false"},
        Refusal{"BadName", "name: small", "name: ../up",
                "job.yaml:1:7: name: \"../up\" is not a name: write 1 to 63 of a-z 0-9 . _ -, the "
                "first one a letter or digit, without .."},
        Refusal{"ManyAtOnce", "  layers: 4\n  hidden: 64\n  heads: 4\n",
                "  layers: 010\n  hiden: 64\n  heads: 2000\n",
                "job.yaml:3:11: model.layers: expected a whole number, got \"010\"; a leading zero "
                "looks octal: write 10\n"
                "job.yaml:4:3: model: unknown key \"hiden\"; did you mean hidden?\n"
                "job.yaml:5:10: model.heads: must be at most 1024, not 2000"}),
    kLabel);

TEST(JobFile, AcceptsTheSmallJob) { EXPECT_EQ(ProblemsOf(YamlSources(kSmallJob)), ""); }

TEST(JobFile, RefusesDeepNesting) {
  const std::string deep =
      absl::StrCat("name: ", std::string(200'000, '['), std::string(200'000, ']'));
  EXPECT_EQ(ProblemsOf(YamlSources(deep)), "job.yaml:1:38: nested deeper than 32");
}

TEST(JobFile, RefusesLargeFiles) {
  EXPECT_EQ(ProblemsOf(YamlSources(std::string(kMaxJobFileBytes + 1, '#'))),
            "job.yaml: is larger than 1MiB");
}

TEST(JobFile, RefusesNulBytes) {
  EXPECT_EQ(ProblemsOf(YamlSources(std::string("name: a\0b", 9))),
            "job.yaml:1:1: the file holds NUL bytes");
}

TEST(JobFile, SaysWhatAnEmptyFileLacks) {
  EXPECT_EQ(ProblemsOf(YamlSources("# nothing yet\n")),
            "job.yaml:1:1: name: is required\n"
            "job.yaml:1:1: model: is required\n"
            "job.yaml:1:1: data: is required\n"
            "job.yaml:1:1: train: is required");
}

TEST(JobFile, RefusesWhatIsNotAMap) {
  EXPECT_EQ(ProblemsOf(YamlSources("- name\n")).substr(0, 43),
            "job.yaml:1:1: expected a map, got a list\njo");
}

TEST(Textproto, HasPlacesToo) {
  JobSources sources;
  sources.text = JobText{"job.textproto",
                         "name: \"small\"\n"
                         "model { layers: 4 hidden: 64 heads: 4 sequence: 32 vocabulary: 512\n"
                         "  moe { experts: 8 active: 9 expert_width: 96 } }\n"
                         "data { train { path: \"corpus/train\" } }\n"
                         "train { steps: 100 global_batch: 18 micro_batch: 4 }\n",
                         true};
  EXPECT_EQ(ProblemsOf(sources),
            "job.textproto:3:20: model.moe.active: must be at most experts (8), not 9\n"
            "job.textproto:5:20: train.global_batch: must be a multiple of micro_batch (4), not "
            "18");
}

TEST(Textproto, RefusesUnknownDuplicateOctalAndDeep) {
  auto problems = [](const std::string& text) {
    JobSources sources;
    sources.text = JobText{"job.textproto", text, true};
    return ProblemsOf(sources);
  };
  EXPECT_EQ(problems("name: \"a\"\nmodel {\n  hiden: 4 }"),
            "job.textproto:3:8: Message type \"moesaic.ModelSpec\" has no field named \"hiden\".");
  EXPECT_EQ(problems("name: \"a\"\nname: \"b\""),
            "job.textproto:2:5: Non-repeated field \"name\" is specified multiple times.");
  EXPECT_EQ(problems("model { layers: 010 heads: 0x10 }"),
            "job.textproto:1:17: expected a number in decimal, got 010\n"
            "job.textproto:1:28: expected a number in decimal, got 0x10");
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "model {";
  EXPECT_TRUE(absl::StartsWith(problems(deep), "job.textproto:1:")) << problems(deep);
}

}  // namespace
}  // namespace moesaic
