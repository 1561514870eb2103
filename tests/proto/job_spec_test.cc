#include "proto/job_spec.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/field_text.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr char kSmallJob[] = R"pb(
  name: "small"
  model {
    layers: 4
    hidden: 64
    heads: 4
    sequence: 32
    vocabulary: 512
    moe {
      experts: 8
      active: 2
      expert_width: 96
      pattern {}
    }
  }
  data { train { path: "corpus/train" } }
  train { steps: 100 global_batch: 16 micro_batch: 4 }
)pb";

JobSpec SmallJob(const std::string& changes = "") {
  JobSpec spec;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(kSmallJob, &spec));
  JobSpec more;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(changes, &more)) << changes;
  spec.MergeFrom(more);
  ApplyDefaults(&spec);
  return spec;
}

std::vector<std::string> Problems(const JobSpec& spec) {
  std::vector<std::string> lines;
  for (const JobProblem& problem : ValidateJob(spec)) {
    lines.push_back(absl::StrCat(problem.path, ": ", problem.message));
  }
  return lines;
}

TEST(ApplyDefaults, FillsDefaultsOfNestedMessages) {
  const JobSpec spec = SmallJob();
  EXPECT_EQ(spec.model().rope_base(), 10000);
  EXPECT_EQ(spec.model().moe().pattern().every(), 1u);
  EXPECT_EQ(spec.recipe().preset(), "top_k");
  EXPECT_TRUE(spec.recipe().router().weight().renormalize());
  EXPECT_EQ(spec.data().train(0).weight(), 1);
  EXPECT_EQ(spec.train().precision(), FP32);
  EXPECT_EQ(spec.elastic().nodes().max(), 1u);
  EXPECT_EQ(spec.elastic().rebalance_ratio(), 1.2);
  EXPECT_EQ(spec.elastic().rebalance_after(), 60);
  EXPECT_EQ(spec.health().failure_window(), 3600);
  EXPECT_EQ(spec.checkpoint().keep().last(), 3u);
}

TEST(ApplyDefaults, ChoosesTheFirstMemberOfEachOneof) {
  const JobSpec spec = SmallJob();
  ASSERT_TRUE(spec.train().optimizer().has_adamw());
  EXPECT_EQ(spec.train().optimizer().adamw().lr(), 3e-4);
  ASSERT_TRUE(spec.train().schedule().has_cosine());
  EXPECT_EQ(spec.train().schedule().cosine().final_factor(), 0.1);
}

TEST(ApplyDefaults, KeepsWhatIsGiven) {
  const JobSpec spec = SmallJob(
      "model { kv_heads: 2 head_width: 8 } run { dir: 'd' } checkpoint { dir: 'c' }"
      "train { optimizer { sgd {} } schedule { constant {} } }");
  EXPECT_EQ(spec.model().kv_heads(), 2u);
  EXPECT_EQ(spec.model().head_width(), 8u);
  EXPECT_EQ(spec.checkpoint().dir(), "c");
  EXPECT_EQ(spec.train().optimizer().sgd().lr(), 0.1);
  EXPECT_TRUE(spec.train().schedule().has_constant());
}

TEST(ApplyDefaults, DerivesWhatFollowsFromOtherFields) {
  const JobSpec spec = SmallJob();
  EXPECT_EQ(spec.model().kv_heads(), 4u);
  EXPECT_EQ(spec.model().head_width(), 16u);
  EXPECT_EQ(spec.run().dir(), "runs/small");
  EXPECT_EQ(spec.checkpoint().dir(), "runs/small/checkpoints");
}

TEST(ApplyDefaults, LeavesAutoFieldsAndAbsentExpertsUnset) {
  JobSpec spec = SmallJob();
  EXPECT_FALSE(spec.parallel().has_expert());
  EXPECT_FALSE(spec.launch().has_allow_root());
  EXPECT_FALSE(spec.launch().has_threads());
  EXPECT_FALSE(spec.recipe().router().select().has_capacity_factor());
  spec.mutable_model()->clear_moe();
  ApplyDefaults(&spec);
  EXPECT_FALSE(spec.model().has_moe());
}

TEST(ApplyDefaults, IsIdempotent) {
  const JobSpec once = SmallJob();
  JobSpec twice = once;
  ApplyDefaults(&twice);
  EXPECT_EQ(once.SerializeAsString(), twice.SerializeAsString());
}

void ExpectDefaultsParse(const google::protobuf::Descriptor& type) {
  const std::unique_ptr<google::protobuf::Message> message(
      google::protobuf::MessageFactory::generated_factory()->GetPrototype(&type)->New());
  for (int i = 0; i < type.field_count(); ++i) {
    const google::protobuf::FieldDescriptor& field = *type.field(i);
    const std::string& text = RulesOf(field).default_value();
    if (!text.empty()) {
      EXPECT_EQ(SetFieldFromText(text, field, message.get()), absl::OkStatus())
          << field.full_name();
    }
    if (field.message_type() != nullptr) ExpectDefaultsParse(*field.message_type());
  }
}

TEST(ApplyDefaults, EveryDefaultOfTheSchemaParses) { ExpectDefaultsParse(*JobSpec::descriptor()); }

TEST(ValidateJob, AcceptsASmallJob) { EXPECT_THAT(Problems(SmallJob()), IsEmpty()); }

TEST(ValidateJob, NamesEveryMissingField) {
  JobSpec spec;
  ApplyDefaults(&spec);
  EXPECT_THAT(Problems(spec), ElementsAre("name: is required", "model: is required",
                                          "data: is required", "train: is required"));
  spec.mutable_model()->mutable_moe();
  spec.mutable_data();
  EXPECT_THAT(
      Problems(spec),
      UnorderedElementsAre("name: is required", "train: is required", "model.layers: is required",
                           "model.hidden: is required", "model.heads: is required",
                           "model.sequence: is required", "model.moe.experts: is required",
                           "model.moe.active: is required", "model.moe.expert_width: is required",
                           "data.train: is required: list at least one",
                           "model.vocabulary: is required when data.tokenizer is not given"));
}

struct Refusal {
  const char* label;
  const char* change;
  const char* problem;
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.label; }

class ValidateJobRefuses : public ::testing::TestWithParam<Refusal> {};

TEST_P(ValidateJobRefuses, ExactlyThis) {
  EXPECT_THAT(Problems(SmallJob(GetParam().change)), ElementsAre(GetParam().problem));
}

INSTANTIATE_TEST_SUITE_P(
    , ValidateJobRefuses,
    ::testing::Values(
        Refusal{"UpperCaseName", "name: 'Big'",
                "name: \"Big\" is not a name: write 1 to 63 of a-z 0-9 . _ -, the first one a "
                "letter or digit, without .."},
        Refusal{"NameWithSlash", "name: '../x'",
                "name: \"../x\" is not a name: write 1 to 63 of a-z 0-9 . _ -, the first one a "
                "letter or digit, without .."},
        Refusal{"NameWithDots", "name: 'a..b'",
                "name: \"a..b\" is not a name: write 1 to 63 of a-z 0-9 . _ -, the first one a "
                "letter or digit, without .."},
        Refusal{"TooManyLayers", "model { layers: 2000 }",
                "model.layers: must be at most 1024, not 2000"},
        Refusal{"TooShortSequence", "model { sequence: 1 }",
                "model.sequence: must be at least 2, not 1"},
        Refusal{"NotANumber", "train { clip_norm: nan }",
                "train.clip_norm: must be a finite number, not nan"},
        Refusal{"Infinite", "train { optimizer { adamw { lr: inf } } }",
                "train.optimizer.adamw.lr: must be a finite number, not inf"},
        Refusal{"ZeroWherePositive", "model { rope_base: 0 }",
                "model.rope_base: must be more than 0, not 0"},
        Refusal{"ShortLease", "health { lease_ttl: 0.05 }",
                "health.lease_ttl: must be at least 100ms, not 50ms"},
        Refusal{"EmptyPath", "run { dir: '' } checkpoint { dir: 'c' }",
                "run.dir: must not be empty"},
        Refusal{"ListElement", "data { train { weight: 1 } }", "data.train[1].path: is required"},
        Refusal{"UnevenMicroBatches", "train { micro_batch: 5 }",
                "train.global_batch: must be a multiple of micro_batch (5), not 16"},
        Refusal{"MoreActiveThanExperts", "model { moe { active: 9 } }",
                "model.moe.active: must be at most experts (8), not 9"},
        Refusal{"UnevenHeads", "model { kv_heads: 3 }",
                "model.kv_heads: heads (4) is not a multiple of kv_heads (3)"},
        Refusal{"HiddenNotSplit", "model { hidden: 66 }",
                "model.heads: hidden (66) is not a multiple of heads (4): change one, or give "
                "head_width"},
        Refusal{"OddHeadWidth", "model { head_width: 15 }",
                "model.head_width: must be even for rotary positions, not 15"},
        Refusal{"OddDerivedHeadWidth", "model { hidden: 12 }",
                "model.head_width: must be even for rotary positions, not 3 (hidden / heads)"},
        Refusal{"DenseLayerWithoutWidth", "model { moe { pattern { every: 2 } } }",
                "model.dense_width: is required, because layer 1 has no experts"},
        Refusal{"NoExpertLayer", "model { dense_width: 8 moe { pattern { first: 4 } } }",
                "model.moe.pattern.first: must be below layers (4), not 4"},
        Refusal{"RouterWithoutGradient", "model { moe { active: 1 } }",
                "model.moe.active: 1 with recipe.router.weight.renormalize true makes every "
                "weight 1, so the router would learn nothing from the loss: set renormalize to "
                "false"},
        Refusal{"MoreExpertRanksThanExperts", "parallel { expert: 9 }",
                "parallel.expert: must be at most model.moe.experts (8), not 9"},
        Refusal{"LongWarmup", "train { schedule { warmup_steps: 101 } }",
                "train.schedule.warmup_steps: must be at most train.steps (100), not 101"},
        Refusal{"LongDecay", "train { schedule { warmup_steps: 10 wsd { decay_steps: 91 } } }",
                "train.schedule.wsd.decay_steps: must be at most train.steps - warmup_steps (90), "
                "not 91"},
        Refusal{"NodesUpsideDown", "elastic { nodes { min: 3 max: 2 } }",
                "elastic.nodes.min: must be at most max (2), not 3"},
        Refusal{"RebalanceForNothing", "elastic { rebalance_ratio: 1 }",
                "elastic.rebalance_ratio: must be 0 (never) or at least 1.05, not 1: placements "
                "that are as good would take turns"},
        Refusal{"GroupsOfUnequalSize", "recipe { router { select { groups: 3 } } }",
                "recipe.router.select.groups: must divide model.moe.experts (8), not 3"},
        Refusal{"MoreGroupsThanThereAre",
                "recipe { router { select { groups: 2 group_limit: 3 } } }",
                "recipe.router.select.group_limit: must be at most groups (2), not 3"},
        Refusal{"GroupsWithTooFewExperts",
                "recipe { router { select { groups: 8 group_limit: 1 } } }",
                "recipe.router.select.group_limit: 1 groups of 1 experts have fewer than "
                "model.moe.active (2)"},
        Refusal{"BalanceGroupsOfUnequalSize", "recipe { router { balance { groups: 5 } } }",
                "recipe.router.balance.groups: must divide model.moe.experts (8), not 5"},
        Refusal{"FewerCandidatesThanActive",
                "recipe { router { select { candidates { mode: RANDOM_ALL from: 1 } } } }",
                "recipe.router.select.candidates.from: must be at least model.moe.active (2), "
                "not 1"},
        Refusal{"CandidatesThatEndBeforeTheyStart",
                "recipe { router { select { candidates { mode: RANDOM_ALL start_step: 5 "
                "end_step: 2 } } } }",
                "recipe.router.select.candidates.start_step: must be at most end_step (2), not 5"},
        Refusal{"CandidatesWithinGroups",
                "recipe { router { select { groups: 4 group_limit: 2 "
                "candidates { mode: RANDOM_ALL } } } }",
                "recipe.router.select.candidates: with select.group_limit: the groups that are "
                "left may have fewer candidates than model.moe.active; take one of the two"},
        Refusal{"PoolOfOneLayer", "recipe { router { balance { pool_coefficient: 0.1 } } }",
                "recipe.router.balance.pool_coefficient: needs layers that share experts "
                "(recipe.experts.reuse); for a layer's own there is balance.coefficient"},
        Refusal{"NullExpertsWithABias",
                "recipe { experts { null_experts: 4 } router { balance { bias { speed: 0.01 } "
                "} } }",
                "recipe.experts.null_experts: with recipe.router.balance.bias: it moves each "
                "expert towards the mean load, and null experts have none to share; take "
                "balance.coefficient"},
        Refusal{"NullExpertsInGlobalBalance",
                "recipe { experts { null_experts: 4 } router { balance { scope: GLOBAL } } }",
                "recipe.experts.null_experts: with recipe.router.balance.scope global: loads "
                "of null experts are not kept from step to step; take micro_batch or sequence"},
        Refusal{"NullExpertsInAPoolsBalance",
                "recipe { experts { null_experts: 4 reuse: 2 } router { balance { "
                "pool_coefficient: 0.1 } } }",
                "recipe.experts.null_experts: with recipe.router.balance.pool_coefficient: that "
                "loss is over the experts that layers share, and each layer has its own null ones"},
        Refusal{"NullExpertsInGroups",
                "recipe { experts { null_experts: 4 } router { select { groups: 2 } } }",
                "recipe.experts.null_experts: with groups: null experts are in none of them"},
        Refusal{"NullExpertsAmongCandidates",
                "recipe { experts { null_experts: 4 } router { select { candidates { mode: "
                "RANDOM_ALL } } } }",
                "recipe.experts.null_experts: with recipe.router.select.candidates: it says "
                "which experts may be chosen, and null experts are none of them"},
        Refusal{"MoreActiveThanExpertsAndNullOnes",
                "model { moe { active: 11 } } recipe { experts { null_experts: 2 } }",
                "model.moe.active: must be at most experts (8 and 2 null ones), not 11"},
        Refusal{"TopPOfSigmoids",
                "recipe { router { score: SIGMOID select { top_p: 0.4 } weight { renormalize: "
                "false } } }",
                "recipe.router.select.top_p: with recipe.router.score other than softmax: "
                "scores must be probabilities, which sum up to 1"},
        Refusal{"TopPRenormalised",
                "recipe { router { select { top_p: 0.4 } } }",
                "recipe.router.select.top_p: with recipe.router.weight.renormalize true: a "
                "token with one expert would weigh it 1, and the router learn nothing from it"},
        Refusal{"TopPOfOne",
                "model { moe { active: 1 } } recipe { router { select { top_p: 0.4 } weight { "
                "renormalize: false } } }",
                "recipe.router.select.top_p: with model.moe.active 1: that is the most experts "
                "a token takes, so the share would say nothing"},
        Refusal{"TopPWithABias",
                "recipe { router { select { top_p: 0.4 } weight { renormalize: false } balance "
                "{ bias { speed: 0.01 } } } }",
                "recipe.router.select.top_p: with recipe.router.balance.bias: probabilities "
                "with a bias do not sum up to 1"},
        Refusal{"TopPWithinGroups",
                "recipe { router { select { top_p: 0.4 groups: 4 group_limit: 2 } weight { "
                "renormalize: false } } }",
                "recipe.router.select.top_p: with recipe.router.select.group_limit: the groups "
                "that are left may never sum up to it"},
        Refusal{"TopPOfCandidates",
                "recipe { router { select { top_p: 0.4 candidates { mode: RANDOM_ALL } } "
                "weight { renormalize: false } } }",
                "recipe.router.select.top_p: with recipe.router.select.candidates: the experts "
                "that are left may never sum up to it"},
        Refusal{"TopPOfWhatIsChosenOtherwise",
                "recipe { experts { null_experts: 4 } router { select { top_p: 0.4 } weight { "
                "renormalize: false } } }",
                "recipe.experts.null_experts: with recipe.router.select.top_p: both make the "
                "number of experts vary; take one"},
        Refusal{"EntropyOfCandidates",
                "recipe { router { select { candidates { mode: RANDOM_ALL } } balance { "
                "entropy: 0.1 } } }",
                "recipe.router.balance.entropy: with recipe.router.select.candidates: it would "
                "be of experts that cannot be chosen"},
        Refusal{"LaterCoefficientWithoutAStep",
                "recipe { router { balance { later { coefficient: 0 } } } }",
                "recipe.router.balance.later.step: is required"},
        Refusal{"LaterCoefficientThatIsTheSame",
                "recipe { router { balance { coefficient: 0.02 later { step: 9 coefficient: 0.02 "
                "} } } }",
                "recipe.router.balance.later.coefficient: is what coefficient is before (0.02), "
                "so nothing would change: give another, or leave `later` out"},
        Refusal{"LaterCoefficientBeforeTheExperts",
                "recipe { experts { spawn {} } router { balance { later { step: 10 coefficient: 0 "
                "} } } }",
                "recipe.router.balance.later.step: must be above recipe.experts.spawn.step (10), "
                "not 10: there is nothing to balance until then, so coefficient would never be "
                "used"}),
    [](const auto& refusal) { return refusal.param.label; });

TEST(ValidateJob, AsksForATokenizerOrAVocabulary) {
  JobSpec spec = SmallJob();
  spec.mutable_model()->clear_vocabulary();
  EXPECT_THAT(Problems(spec),
              ElementsAre("model.vocabulary: is required when data.tokenizer is not given"));
  spec.mutable_data()->set_tokenizer("bpe.model");
  EXPECT_THAT(Problems(spec), IsEmpty());
}

TEST(ValidateJob, ReportsIndependentProblemsTogether) {
  EXPECT_THAT(Problems(SmallJob("model { layers: 0 moe { active: 9 } } train { micro_batch: 5 }")),
              UnorderedElementsAre("model.layers: must be at least 1, not 0",
                                   "model.moe.active: must be at most experts (8), not 9",
                                   "train.global_batch: must be a multiple of micro_batch (5), "
                                   "not 16"));
}

TEST(ValidateJob, SaysNothingMoreAboutKnownProblems) {
  JobSpec spec = SmallJob("model { kv_heads: 3 }");
  spec.mutable_train()->clear_steps();
  spec.clear_data();
  EXPECT_THAT(ValidateJob(spec, {"model.kv_heads", "train.steps", "data"}), IsEmpty());
}

TEST(ValidateJob, AcceptsOneActiveExpertWithRawWeights) {
  EXPECT_THAT(Problems(SmallJob("model { moe { active: 1 } }"
                                "recipe { router { weight { renormalize: false } } }")),
              IsEmpty());
}

constexpr char kEvoMoe[] =
    "model { moe { active: 1 } } recipe { experts { spawn {} } "
    "router { weight { renormalize: false } select { dense_to_sparse {} } } } ";

JobSpec EvoMoeJob(const std::string& more) {
  JobSpec spec;
  for (const std::string& text : {std::string(kSmallJob), std::string(kEvoMoe), more}) {
    EXPECT_TRUE(google::protobuf::TextFormat::MergeFromString(text, &spec)) << text;
  }
  ApplyDefaults(&spec);
  return spec;
}

TEST(EvoMoeKeys, ItsPartsAreOnlyThereWhereTheyAreGiven) {
  const JobSpec plain = SmallJob();
  EXPECT_FALSE(plain.recipe().experts().has_spawn());
  EXPECT_FALSE(plain.recipe().router().select().has_dense_to_sparse());
  const JobSpec spec = SmallJob(kEvoMoe);
  EXPECT_THAT(Problems(spec), IsEmpty());
  EXPECT_EQ(spec.recipe().experts().spawn().step(), 10u);
  EXPECT_EQ(spec.recipe().experts().spawn().mask(), 0.3);
  const DenseToSparseSpec& gate = spec.recipe().router().select().dense_to_sparse();
  EXPECT_EQ(gate.hard_step(), 50u);
  EXPECT_EQ(gate.decay_steps(), 40u);
  EXPECT_EQ(gate.threshold(), 0.001);
}

TEST(EvoMoeKeys, AGateNeedsNoSpawnAndASpawnNoGate) {
  EXPECT_THAT(Problems(SmallJob("recipe { experts { spawn {} } }")), IsEmpty());
  const JobSpec gate = SmallJob(
      "model { moe { active: 1 } } recipe { router { weight { renormalize: false } "
      "select { dense_to_sparse {} } } }");
  EXPECT_THAT(Problems(gate), IsEmpty());
  EXPECT_EQ(gate.recipe().router().select().dense_to_sparse().decay_steps(), 50u);
}

TEST(EvoMoeKeys, WhatMakesNoSenseIsRefusedWithTheReason) {
  const std::string gate = "recipe.router.select.dense_to_sparse";
  const std::pair<const char*, std::string> kRefused[] = {
      {"recipe { experts { spawn { step: 100 } } router { select { dense_to_sparse { hard_step: "
       "100 "
       "} } } }",
       "recipe.experts.spawn.step: must be below train.steps (100), not 100: the experts would "
       "never "
       "be used"},
      {"recipe { experts { spawn { step: 30 } } router { select { dense_to_sparse { hard_step: 20 "
       "} "
       "} } }",
       gate + ".hard_step: must be at least recipe.experts.spawn.step (30), not 20: there would be "
              "one expert to choose from"},
      {"recipe { router { select { dense_to_sparse { threshold: 1 } } } }",
       gate + ".threshold: must be below 1, not 1: no probability is above it"},
      {"recipe { router { select { dense_to_sparse { temperature: 0.1 } } } }",
       gate + ".final_temperature: must be at most temperature (0.1), not 0.3"},
      {"model { moe { active: 2 } }", "model.moe.active: must be 1 with " + gate +
                                          ", whose last phase takes the best expert alone, not 2"},
      {"recipe { router { score: SIGMOID } }",
       "recipe.router.score: must be softmax with " + gate +
           ": its threshold is of probabilities that sum to 1"},
      {"recipe { router { balance { bias { speed: 0.1 } } } }",
       "recipe.router.balance.bias: makes no sense with " + gate +
           ": until hard_step the threshold, not a ranking, says who is chosen"},
      {"recipe { router { balance { scope: GLOBAL } } }",
       "recipe.router.balance.scope: cannot be global with " + gate +
           ": the step before had another temperature"},
      {"recipe { router { balance { group_coefficient: 0.1 } } }",
       "recipe.router.balance: losses over groups make no sense with " + gate +
           ": tokens begin in all groups"},
      {"recipe { router { select { groups: 4 group_limit: 2 } } }",
       "recipe.router.select.group_limit: makes no sense with " + gate +
           ": tokens begin with the experts of all groups"},
      {"recipe { router { select { candidates { mode: RANDOM_ALL } } } }",
       "recipe.router.select.candidates: makes no sense with " + gate +
           ": one lets experts in, the other keeps them out"},
      {"recipe { experts { reuse: 2 } }",
       "recipe.experts.reuse: makes no sense with " + gate +
           ": tokens would begin with the experts of all layers of a group"}};
  for (const auto& [change, problem] : kRefused) {
    EXPECT_THAT(Problems(EvoMoeJob(change)), ::testing::Contains(problem));
  }
}

TEST(HashJob, ReactsToItsOwnClassOnly) {
  const JobHashes base = HashJob(SmallJob());
  const JobHashes identity = HashJob(SmallJob("model { hidden: 128 head_width: 16 }"));
  EXPECT_NE(identity.identity, base.identity);
  EXPECT_EQ(identity.trajectory, base.trajectory);
  EXPECT_EQ(identity.operational, base.operational);
  const JobHashes trajectory = HashJob(SmallJob("train { optimizer { adamw { lr: 1e-4 } } }"));
  EXPECT_EQ(trajectory.identity, base.identity);
  EXPECT_NE(trajectory.trajectory, base.trajectory);
  EXPECT_EQ(trajectory.operational, base.operational);
  const JobHashes operational = HashJob(SmallJob("elastic { slots_per_node: 2 }"));
  EXPECT_EQ(operational.identity, base.identity);
  EXPECT_EQ(operational.trajectory, base.trajectory);
  EXPECT_NE(operational.operational, base.operational);
}

TEST(HashJob, IsTheSameForGivenAndDefaultedValues) {
  const JobHashes base = HashJob(SmallJob());
  const JobHashes given = HashJob(SmallJob("model { kv_heads: 4 rope_base: 10000 }"));
  EXPECT_EQ(given.identity, base.identity);
}

TEST(DescribeChanges, NamesFieldAndBothValues) {
  const JobSpec before = SmallJob();
  const JobSpec after = SmallJob(
      "model { layers: 6 } train { schedule { linear {} } }"
      "data { train { path: 'more' } } health { lease_ttl: 7 }");
  EXPECT_THAT(DescribeChanges(before, after, IDENTITY), ElementsAre("model.layers: 4 -> 6"));
  EXPECT_THAT(DescribeChanges(before, after, TRAJECTORY),
              ElementsAre("data.train[1].path: unset -> more", "data.train[1].weight: unset -> 1",
                          "train.schedule: cosine -> linear",
                          "train.schedule.cosine.final_factor: 0.1 -> unset",
                          "train.schedule.linear.final_factor: unset -> 0"));
  EXPECT_THAT(DescribeChanges(before, after, OPERATIONAL),
              ElementsAre("health.lease_ttl: 5s -> 7s"));
  EXPECT_THAT(DescribeChanges(before, before, IDENTITY), IsEmpty());
}

TEST(IsMoeLayer, FollowsThePattern) {
  const ModelSpec model =
      SmallJob("model { dense_width: 8 moe { pattern { first: 1 every: 2 } } }").model();
  EXPECT_FALSE(IsMoeLayer(model, 0));
  EXPECT_TRUE(IsMoeLayer(model, 1));
  EXPECT_FALSE(IsMoeLayer(model, 2));
  EXPECT_TRUE(IsMoeLayer(model, 3));
  EXPECT_FALSE(IsMoeLayer(ModelSpec(), 0));
}

}  // namespace
}  // namespace moesaic
