#include "trainer/catalog/parameter_catalog.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "proto/job_spec.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

JobSpec Job(const char* more = "") {
  JobSpec spec;
  const std::string text = std::string(R"(
    name: "t"
    model { layers: 2 hidden: 16 heads: 4 kv_heads: 2 sequence: 8 dense_width: 24 vocabulary: 32
            moe { experts: 3 active: 2 expert_width: 8 shared_width: 4
                  pattern { every: 2 first: 1 } } }
    data { train { path: "x" } }
    train { steps: 1 global_batch: 1 micro_batch: 1 }
  )") + more;
  EXPECT_TRUE(google::protobuf::TextFormat::MergeFromString(text, &spec));
  ApplyDefaults(&spec);
  return spec;
}

std::vector<std::string> Names(const ParameterCatalog& catalog) {
  std::vector<std::string> names;
  for (const ParameterSpec& parameter : catalog.parameters()) names.push_back(parameter.name);
  return names;
}

TEST(ParameterCatalog, ListsEveryParameterInOrder) {
  const auto catalog = ParameterCatalog::Build(Job());
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  EXPECT_THAT(
      Names(*catalog),
      ElementsAre("embedding", "layers.0.attention_norm", "layers.0.attention.qkv",
                  "layers.0.attention.output", "layers.0.feed_forward_norm",
                  "layers.0.dense.gate_up", "layers.0.dense.down", "layers.1.attention_norm",
                  "layers.1.attention.qkv", "layers.1.attention.output",
                  "layers.1.feed_forward_norm", "layers.1.moe.router",
                  "layers.1.moe.shared.gate_up", "layers.1.moe.shared.down",
                  "layers.1.moe.experts.0.gate_up", "layers.1.moe.experts.0.down",
                  "layers.1.moe.experts.1.gate_up", "layers.1.moe.experts.1.down",
                  "layers.1.moe.experts.2.gate_up", "layers.1.moe.experts.2.down", "norm", "head"));
  for (ParameterId id = 0; id < catalog->size(); ++id) {
    EXPECT_EQ(catalog->Find((*catalog)[id].name), id);
  }
  EXPECT_EQ(catalog->Find("layers.0.moe.router"), kNoParameter);
  EXPECT_EQ(catalog->experts(0), 0);
  EXPECT_EQ(catalog->experts(1), 3);
}

// Before a spawn: neither router nor experts, and what it has is replicated.
TEST(ParameterCatalog, BeforeTheSpawnALayerHasOneExpert) {
  const JobSpec spec =
      Job("recipe { experts { spawn { step: 7 } } router { state { width: 4 } "
          "balance { bias { speed: 0.1 } } } } ");
  EXPECT_EQ(ExpertsAt(spec, 6), Experts::kOne);
  EXPECT_EQ(ExpertsAt(spec, 7), Experts::kAll);
  EXPECT_EQ(ExpertsAt(Job(), 0), Experts::kAll);
  const auto one = ParameterCatalog::Build(spec, Experts::kOne),
             all = ParameterCatalog::Build(spec);
  ASSERT_TRUE(one.ok() && all.ok());
  EXPECT_THAT(Names(*one), ElementsAre("embedding", "layers.0.attention_norm",
                                       "layers.0.attention.qkv", "layers.0.attention.output",
                                       "layers.0.feed_forward_norm", "layers.0.dense.gate_up",
                                       "layers.0.dense.down", "layers.1.attention_norm",
                                       "layers.1.attention.qkv", "layers.1.attention.output",
                                       "layers.1.feed_forward_norm", "layers.1.moe.base.gate_up",
                                       "layers.1.moe.base.down", "layers.1.moe.shared.gate_up",
                                       "layers.1.moe.shared.down", "norm", "head"));
  EXPECT_FALSE(one->IsMoe(1));
  EXPECT_EQ(one->experts(1), 0);
  EXPECT_EQ(one->which(), Experts::kOne);
  EXPECT_NE(one->Hash(), all->Hash());
  const ParameterSpec& base = (*one)[one->Find("layers.1.moe.base.gate_up")];
  EXPECT_EQ(base.expert, -1);
  EXPECT_EQ(base.shape, (*all)[all->Find("layers.1.moe.experts.0.gate_up")].shape);
  EXPECT_EQ(one->active_elements(), one->total_elements());
}

TEST(ParameterCatalog, ShapesKindsAndRules) {
  const auto catalog = ParameterCatalog::Build(Job());
  ASSERT_TRUE(catalog.ok());
  const auto at = [&](absl::string_view name) { return (*catalog)[catalog->Find(name)]; };
  EXPECT_THAT(at("layers.0.attention.qkv").shape, ElementsAre((4 + 2 * 2) * 4, 16));
  EXPECT_THAT(at("layers.1.moe.experts.2.gate_up").shape, ElementsAre(16, 16));
  EXPECT_THAT(at("layers.1.moe.experts.2.down").shape, ElementsAre(16, 8));
  EXPECT_EQ(at("layers.1.moe.experts.2.down").expert, 2);
  EXPECT_EQ(at("layers.1.moe.experts.2.down").layer, 1);
  EXPECT_EQ(at("layers.1.moe.shared.down").expert, -1);
  EXPECT_TRUE(at("layers.1.moe.router").fp32);
  EXPECT_TRUE(at("norm").fp32);
  EXPECT_FALSE(at("norm").decay);
  EXPECT_EQ(at("norm").init.kind, InitRule::kOnes);
  EXPECT_TRUE(at("head").decay);
  EXPECT_DOUBLE_EQ(at("head").init.stddev, 0.02);
  EXPECT_DOUBLE_EQ(at("layers.1.moe.experts.0.down").init.stddev, 0.02 / std::sqrt(4.0));
  EXPECT_EQ(at("embedding").uses, 1);
}

TEST(ParameterCatalog, NormsOfQueriesAndKeysFollowTheProjection) {
  JobSpec job = Job();
  job.mutable_model()->set_qk_norm(true);
  const auto catalog = ParameterCatalog::Build(job);
  ASSERT_TRUE(catalog.ok());
  const ParameterId qkv = catalog->Find("layers.1.attention.qkv");
  for (const ParameterId id : {qkv + 1, qkv + 2}) {
    const ParameterSpec& norm = (*catalog)[id];
    EXPECT_EQ(norm.name, id == qkv + 1 ? "layers.1.attention.q_norm" : "layers.1.attention.k_norm");
    EXPECT_THAT(norm.shape, ElementsAre(4));
    EXPECT_EQ(norm.kind, ParameterKind::kNorm);
    EXPECT_FALSE(norm.decay);
    EXPECT_TRUE(norm.fp32);
    EXPECT_EQ(norm.init.kind, InitRule::kOnes);
  }
}

TEST(ParameterCatalog, CountsTotalAndActiveElements) {
  const auto catalog = ParameterCatalog::Build(Job());
  ASSERT_TRUE(catalog.ok());
  const int64_t attention = 2 * (16 + 32 * 16 + 16 * 16 + 16);
  const int64_t dense = 3 * 24 * 16;
  const int64_t expert = 3 * 8 * 16;
  const int64_t rest = 2 * 32 * 16 + 16 + 3 * 16 + 3 * 4 * 16;
  EXPECT_EQ(catalog->total_elements(), attention + dense + 3 * expert + rest);
  EXPECT_EQ(catalog->active_elements(), attention + dense + 2 * expert + rest);
}

TEST(ParameterCatalog, ATiedHeadIsASecondUseOfTheEmbedding) {
  const auto catalog = ParameterCatalog::Build(Job("model { tie_head: true }"));
  ASSERT_TRUE(catalog.ok());
  EXPECT_EQ(catalog->Find("head"), kNoParameter);
  EXPECT_EQ((*catalog)[catalog->Find("embedding")].uses, 2);
}

TEST(ParameterCatalog, HashFollowsNamesAndShapesAndNothingElse) {
  const auto hash = [](const char* more) { return ParameterCatalog::Build(Job(more))->Hash(); };
  EXPECT_EQ(hash(""), hash("train { seed: 99 }"));
  EXPECT_NE(hash(""), hash("model { hidden: 32 }"));
  EXPECT_NE(hash(""), hash("model { tie_head: true }"));
  EXPECT_NE(hash(""), hash("model { moe { experts: 4 } }"));
}

TEST(ParameterCatalog, RefusesWhatItCannotList) {
  JobSpec no_vocabulary = Job();
  no_vocabulary.mutable_model()->clear_vocabulary();
  EXPECT_THAT(std::string(ParameterCatalog::Build(no_vocabulary).status().message()),
              HasSubstr("model.vocabulary"));
  JobSpec no_width = Job();
  no_width.mutable_model()->clear_dense_width();
  EXPECT_THAT(std::string(ParameterCatalog::Build(no_width).status().message()),
              HasSubstr("model.dense_width"));
}

TEST(ParameterCatalog, RefusesSizesThatOverflow) {
  const auto many = ParameterCatalog::Build(
      Job("model { layers: 1024 moe { experts: 65536 pattern { every: 1 first: 0 } } }"));
  EXPECT_EQ(many.status().code(), absl::StatusCode::kInvalidArgument);
  JobSpec large = Job();
  large.mutable_model()->set_vocabulary(4294967295u);
  large.mutable_model()->set_hidden(4294967295u);
  EXPECT_THAT(std::string(ParameterCatalog::Build(large).status().message()),
              HasSubstr("overflow"));
}

}  // namespace
}  // namespace moesaic
