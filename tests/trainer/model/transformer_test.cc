// Hand-written forward and backward against autograd on an independent implementation.
#include "trainer/model/transformer.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/trainer/model/model_fixture.h"
#include "tests/trainer/model/reference_model.h"
#include "trainer/model/decode.h"
#include "trainer/model/initialise.h"

namespace moesaic {
namespace {

PassOptions Options() {
  PassOptions options;
  options.loss_scale = 1.0 / 17;
  options.aux_scale = 0.5;
  return options;
}

struct Case {
  const char* name;
  const char* job;
  bool documents = false;
  uint64_t step = 0;
};

class TransformerCase : public ::testing::TestWithParam<Case> {};

TEST_P(TransformerCase, LossAndEveryGradientEqualAutograd) {
  const JobSpec spec = SmallJob(GetParam().job);
  const SingleRankModel model(spec);
  const ParameterCatalog& catalog = model.catalog();
  const auto weights = RandomWeights(catalog, 5);
  MicroBatch batch = RandomMicroBatch(spec, 3, 2);
  if (GetParam().documents) {
    batch.document_starts = at::zeros({batch.sequences * batch.length}, at::kInt);
    batch.document_starts.narrow(0, 5, 4).fill_(5);
    batch.document_starts.narrow(0, 9, 3).fill_(9);
  }
  for (const bool reproducible : {false, true}) {
    PassOptions options = Options();
    options.reproducible = reproducible;
    options.step = GetParam().step;
    const ReferenceResult expected = RunReference(spec, catalog, weights, batch, options);

    FixedWeights source(catalog, weights);
    LeafSink sink(catalog);
    TransformerPass pass(model.transformer(), batch, options, source);
    pass.RunForward();
    pass.RunBackward(sink);

    EXPECT_NEAR(pass.scalars().loss_sum, expected.loss_sum, 1e-4 * expected.loss_sum);
    EXPECT_NEAR(pass.scalars().aux_loss, expected.aux_loss, 1e-5 * expected.aux_loss);
    EXPECT_EQ(DroppedOf(pass.scalars()), expected.dropped);
    EXPECT_EQ(CountsOf(pass.scalars()), expected.counts);
    EXPECT_EQ(pass.scalars().targets, batch.targets.ge(0).sum().item<int64_t>());
    for (ParameterId id = 0; id < catalog.size(); ++id) {
      // Reproducible mode leaves out what is zero.
      const bool zero = expected.gradients[id].abs().max().item<double>() == 0;
      const bool optional = !catalog[id].learnt || (reproducible && zero);
      EXPECT_TRUE(sink.Reported(id) || optional) << catalog[id].name;
      EXPECT_LT(RelativeError(sink.Sum(id), expected.gradients[id]), 1e-4) << catalog[id].name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Parts, TransformerCase,
    ::testing::Values(
        Case{"Plain", ""}, Case{"Documents", "", true}, Case{"Tied", "model { tie_head: true }"},
        Case{"Shared", "model { moe { shared_width: 6 } }"},
        Case{"AllMoe", "model { moe { pattern { every: 1 first: 0 } } }"},
        Case{"MultiHead", "model { kv_heads: 4 head_width: 6 }"},
        Case{"HeadNorms", "model { qk_norm: true }", true},
        Case{"RawWeights",
             "recipe { router { weight { renormalize: false scale: 2.5 } "
             "balance { coefficient: 0.3 z_loss: 0.05 } } }"},
        Case{"Sigmoid",
             "recipe { router { score: SIGMOID weight { scale: 1.5 } "
             "balance { coefficient: 0.7 } } }"},
        Case{"Capacity", "recipe { router { select { capacity_factor: 0.8 } } }"},
        Case{"SigmoidRawCapacity",
             "recipe { router { score: SIGMOID weight { renormalize: false } "
             "select { capacity_factor: 0.6 } balance { coefficient: 0.2 z_loss: 0.01 } } }"},
        Case{"TopOne",
             "model { moe { active: 1 } } recipe { router { weight { renormalize: false } } }"},
        Case{"AllActive", "model { moe { active: 5 } }"},
        Case{"DeepSeekV2",
             "model { moe { experts: 6 shared_width: 6 } } recipe { preset: 'deepseek_v2' router { "
             "weight { scale: 4 } select { groups: 3 group_limit: 2 } balance { coefficient: 0.3 "
             "group_coefficient: 0.2 communication: 0.4 } } }"},
        Case{"DeepSeekV3",
             "model { moe { experts: 6 active: 4 } } recipe { preset: 'deepseek_v3' router { "
             "select { groups: 3 group_limit: 2 } balance { coefficient: 0.5 } } }"},
        Case{"BalanceGroups",
             "model { moe { experts: 6 } } recipe { router { balance { coefficient: 0 groups: 2 "
             "group_coefficient: 0.6 communication: 0.3 } } }"},
        Case{"RMoe",
             "model { layers: 4 moe { pattern { every: 1 first: 1 } } } "
             "recipe { preset: 'rmoe' router { state { width: 6 } } }"},
        Case{"RMoeOverDenseLayers",
             "model { layers: 4 } recipe { preset: 'rmoe' router { state { width: 6 } } }"},
        Case{"RMoeDetached",
             "model { layers: 3 moe { pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'rmoe' router { state { width: 6 mode: DETACH } } }"},
        Case{"RMoeNotPassed",
             "model { layers: 3 moe { pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'rmoe' router { state { width: 6 mode: NOT_PASSED } } }"},
        Case{"RMoeWithTheGateOfDeepSeekV3",
             "model { layers: 3 moe { experts: 6 pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'deepseek_v3' router { state { width: 6 } "
             "select { groups: 3 group_limit: 2 } } }"},
        Case{"ReXMoeLocal",
             "model { layers: 5 moe { pattern { every: 1 first: 0 } } } train { steps: 1000 } "
             "recipe { preset: 'rexmoe' experts { reuse: 2 } }"},
        Case{"ReXMoeAllExperts",
             "model { layers: 5 moe { pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'rexmoe' experts { reuse: 3 } }",
             false, 10},
        Case{"ReXMoeSomeExperts",
             "model { layers: 4 moe { pattern { every: 1 first: 0 } } } train { steps: 1000 } "
             "recipe { preset: 'rexmoe' experts { reuse: 2 } router { balance { coefficient: 0.4 } "
             "select { candidates { mode: RANDOM_ALL } } } }",
             false, 400},
        Case{"ReXMoePoolBalance",
             "model { layers: 5 moe { pattern { every: 1 first: 0 } } } train { steps: 1000 } "
             "recipe { preset: 'rexmoe' experts { reuse: 2 } router { balance { coefficient: 0.2 "
             "pool_coefficient: 0.6 scope: SEQUENCE } "
             "select { candidates { mode: LOCAL_FIRST } } } }",
             false, 400},
        Case{
            "ReXMoePoolBalanceOfSigmoids",
            "model { layers: 3 moe { pattern { every: 1 first: 0 } } } "
            "recipe { preset: 'deepseek_v3' experts { reuse: 3 } router { balance { coefficient: 0 "
            "pool_coefficient: 0.6 } } }"},
        Case{"ReXMoeWithABias",
             "model { layers: 4 moe { pattern { every: 1 first: 0 } } } train { steps: 1000 } "
             "recipe { preset: 'deepseek_v3' experts { reuse: 2 } "
             "router { select { candidates { mode: LOCAL_FIRST } } } }",
             false, 400},
        Case{"ReXMoeWithARecurrentRouter",
             "model { layers: 4 moe { pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'rexmoe' experts { reuse: 2 } router { state { width: 6 } } }",
             false, 9},
        Case{"AdaMoe",
             "model { layers: 3 moe { active: 3 pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'adamoe' experts { null_experts: 6 } "
             "router { balance { coefficient: 0.4 } } }"},
        Case{"AdaMoeOfSigmoidsInAPoolWithACapacity",
             "model { layers: 4 moe { active: 4 shared_width: 8 pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'adamoe' experts { null_experts: 4 reuse: 2 } "
             "router { score: SIGMOID state { width: 6 } select { capacity_factor: 1 } "
             "balance { coefficient: 0.4 scope: SEQUENCE z_loss: 0.1 } } }"},
        Case{"TopP",
             "model { layers: 3 moe { active: 4 pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'top_p' router { select { top_p: 0.6 } "
             "balance { coefficient: 0.4 entropy: 0.3 } } }"},
        Case{"EntropyOfSigmoids",
             "recipe { preset: 'deepseek_v3' "
             "router { balance { coefficient: 0.2 entropy: 0.3 } } }"},
        Case{"GlobalBalance", "recipe { router { balance { coefficient: 0.4 scope: GLOBAL } } }"}),
    [](const auto& c) { return c.param.name; });

TEST(Transformer, DenseOnly) {
  JobSpec spec = SmallJob();
  spec.mutable_model()->clear_moe();
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  const MicroBatch batch = RandomMicroBatch(spec, 0, 2);
  const PassOptions options = Options();
  const ReferenceResult expected = RunReference(spec, model.catalog(), weights, batch, options);
  FixedWeights source(model.catalog(), weights);
  LeafSink sink(model.catalog());
  TransformerPass pass(model.transformer(), batch, options, source);
  pass.RunForward();
  pass.RunBackward(sink);
  EXPECT_NEAR(pass.scalars().loss_sum, expected.loss_sum, 1e-4 * expected.loss_sum);
  for (ParameterId id = 0; id < model.catalog().size(); ++id) {
    EXPECT_LT(RelativeError(sink.Sum(id), expected.gradients[id]), 1e-4)
        << model.catalog()[id].name;
  }
}

// The head works through its rows in chunks; a vocabulary this large needs two of them.
TEST(Transformer, AHeadOfSeveralChunks) {
  const JobSpec spec = SmallJob(
      "model { vocabulary: 150000 sequence: 32 hidden: 8 heads: 1 kv_heads: 1 "
      "head_width: 8 layers: 1 moe { pattern { first: 0 } } }");
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  const MicroBatch batch = RandomMicroBatch(spec, 0, 2);
  PassOptions options = Options();
  const ReferenceResult expected = RunReference(spec, model.catalog(), weights, batch, options);
  FixedWeights source(model.catalog(), weights);
  LeafSink sink(model.catalog());
  TransformerPass pass(model.transformer(), batch, options, source);
  pass.RunForward();
  pass.RunBackward(sink);
  EXPECT_NEAR(pass.scalars().loss_sum, expected.loss_sum, 1e-4 * expected.loss_sum);
  for (const char* name : {"head", "norm", "embedding"}) {
    const ParameterId id = model.catalog().Find(name);
    EXPECT_LT(RelativeError(sink.Sum(id), expected.gradients[id]), 1e-4) << name;
  }
  options.training = false;
  TransformerPass evaluation(model.transformer(), batch, options, source);
  evaluation.RunForward();
  EXPECT_NEAR(evaluation.scalars().loss_sum, pass.scalars().loss_sum,
              1e-6 * pass.scalars().loss_sum);
}

TEST(Transformer, ATiedEmbeddingReportsALeafAUse) {
  const JobSpec spec = SmallJob("model { tie_head: true }");
  const SingleRankModel model(spec);
  FixedWeights source(model.catalog(), RandomWeights(model.catalog(), 5));
  const MicroBatch batch = RandomMicroBatch(spec, 4, 1);
  const PassOptions options = Options();
  LeafSink sink(model.catalog());
  TransformerPass pass(model.transformer(), batch, options, source);
  pass.RunForward();
  pass.RunBackward(sink);
  const ParameterId embedding = model.catalog().Find("embedding");
  EXPECT_TRUE(sink.leaves().contains({embedding, 0, 4}));
  EXPECT_TRUE(sink.leaves().contains({embedding, 1, 4}));
}

TEST(Transformer, BFloat16IsNearFloat) {
  const JobSpec spec = SmallJob("model { moe { shared_width: 6 } }");
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  const MicroBatch batch = RandomMicroBatch(spec, 0, 2);
  const auto run = [&](at::ScalarType compute, LeafSink& sink) {
    PassOptions options = Options();
    options.compute = compute;
    FixedWeights source(model.catalog(), weights, compute);
    TransformerPass pass(model.transformer(), batch, options, source);
    pass.RunForward();
    pass.RunBackward(sink);
    return pass.scalars().loss_sum;
  };
  LeafSink exact(model.catalog()), rounded(model.catalog());
  const double loss = run(at::kFloat, exact);
  EXPECT_NEAR(run(at::kBFloat16, rounded), loss, 0.02 * loss);
  for (const char* name : {"head", "layers.0.attention.qkv", "layers.0.dense.down"}) {
    const ParameterId id = model.catalog().Find(name);
    EXPECT_LT(RelativeError(rounded.Sum(id), exact.Sum(id)), 0.1) << name;
  }
}

TEST(Transformer, EvaluationGivesTheLossOfTrainingAndKeepsNothing) {
  const JobSpec spec = SmallJob();
  const SingleRankModel model(spec);
  FixedWeights source(model.catalog(), RandomWeights(model.catalog(), 5));
  const MicroBatch batch = RandomMicroBatch(spec, 0, 2);
  PassOptions options = Options();
  TransformerPass training(model.transformer(), batch, options, source);
  training.RunForward();
  options.training = false;
  TransformerPass evaluation(model.transformer(), batch, options, source);
  evaluation.RunForward();
  EXPECT_DOUBLE_EQ(evaluation.scalars().loss_sum, training.scalars().loss_sum);
  for (const PassContext& context : evaluation.contexts()) EXPECT_EQ(context.saved, nullptr);
}

TEST(Transformer, BlocksReportExactlyTheirParameters) {
  const JobSpec spec = SmallJob("model { qk_norm: true moe { shared_width: 6 } }");
  const SingleRankModel model(spec);
  std::vector<int> named(model.catalog().size());
  for (const auto& block : model.transformer().blocks()) {
    for (ParameterId id : block->parameters()) ++named[id];
  }
  for (int count : named) EXPECT_EQ(count, 1);
}

// A batch of sequences, appended in pieces, gives the logits that whole sequences give.
void ExpectDecoderEqualsForward(const JobSpec& spec) {
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  FixedWeights source(model.catalog(), weights);
  const MicroBatch batch = RandomMicroBatch(spec, 0, 3);
  PassOptions options = Options();
  options.step = spec.train().steps();  // all of a pool can be chosen, as in generation
  const at::Tensor expected =
      RunReference(spec, model.catalog(), weights, batch, options).logits.view({3, 12, -1});
  const at::Tensor tokens = batch.tokens.view({3, 12});
  Decoder decoder(model.transformer(), source, 3, 12, at::kFloat);
  int64_t begin = 0;
  for (int64_t count : {5, 1, 1, 4, 1}) {
    const at::Tensor logits = decoder.Append(tokens.narrow(1, begin, count));
    begin += count;
    EXPECT_LT(RelativeError(logits, expected.select(1, begin - 1)), 1e-4) << begin;
  }
  EXPECT_THROW(decoder.Append(tokens.narrow(1, 0, 1)), c10::Error);
}

TEST(Decoder, EqualsTheWholeForward) {
  ExpectDecoderEqualsForward(SmallJob("model { moe { shared_width: 6 } }"));
}

TEST(Decoder, EqualsTheWholeForwardWithHeadNorms) {
  ExpectDecoderEqualsForward(SmallJob("model { qk_norm: true kv_heads: 1 }"));
}

TEST(Decoder, EqualsTheWholeForwardOfEveryRecipe) {
  for (const char* recipe :
       {"preset: 'deepseek_v3'", "preset: 'rmoe' router { state { width: 6 } }",
        "preset: 'rexmoe' experts { reuse: 2 }"}) {
    SCOPED_TRACE(recipe);
    ExpectDecoderEqualsForward(SmallJob(absl::StrCat(
        "model { layers: 4 moe { pattern { every: 1 first: 1 } } } recipe { ", recipe, " }")));
  }
}

TEST(Decoder, IgnoresTheCapacityLimit) {
  const JobSpec spec = SmallJob();
  const JobSpec limited = SmallJob("recipe { router { select { capacity_factor: 0.1 } } }");
  const SingleRankModel model(spec), limited_model(limited);
  FixedWeights source(model.catalog(), RandomWeights(model.catalog(), 5));
  const at::Tensor tokens = RandomMicroBatch(spec, 0, 2).tokens.view({2, 12});
  Decoder free(model.transformer(), source, 2, 12, at::kFloat);
  Decoder limit(limited_model.transformer(), source, 2, 12, at::kFloat);
  EXPECT_TRUE(at::equal(free.Append(tokens), limit.Append(tokens)));
}

// C10: values depend on (seed, name, element) and on no layout.
TEST(Initialise, C10AShardHasTheValuesOfTheWhole) {
  const ParameterCatalog catalog = CatalogOf(SmallJob());
  const ParameterSpec& parameter = catalog[catalog.Find("layers.1.moe.experts.3.gate_up")];
  at::Tensor whole = at::empty(parameter.shape, at::kFloat);
  Initialise(parameter, 9, 0, whole);
  at::Tensor shard = at::empty({101}, at::kFloat);
  Initialise(parameter, 9, 77, shard);
  EXPECT_TRUE(at::equal(shard, whole.view({-1}).narrow(0, 77, 101)));
  at::Tensor other = at::empty(parameter.shape, at::kFloat);
  Initialise(catalog[catalog.Find("layers.1.moe.experts.2.gate_up")], 9, 0, other);
  EXPECT_FALSE(at::equal(whole, other));
  EXPECT_NEAR(whole.std().item<double>(), 0.02, 0.002);
  at::Tensor norm = at::empty({16}, at::kFloat);
  Initialise(catalog[catalog.Find("norm")], 9, 0, norm);
  EXPECT_TRUE(at::equal(norm, at::ones({16})));
}

}  // namespace
}  // namespace moesaic
