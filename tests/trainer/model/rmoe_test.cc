// RMoE (arXiv 2408.06793): the recurrent router by itself, and inside models. That a whole model's
// gradients are right is held against autograd in transformer_test.cc; that layouts do not matter,
// in tests/equivalence/recipe_equality_test.cc.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/trainer/model/model_fixture.h"
#include "trainer/model/feed_forward.h"
#include "trainer/model/router/gru_cell.h"
#include "trainer/model/router/logits.h"

namespace moesaic {
namespace {

constexpr int64_t kTokens = 7;
constexpr int64_t kWidth = 6;
constexpr int kLayers = 3;

at::Tensor Random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
}

JobSpec Job(const std::string& mode = "CARRY", const std::string& more = "") {
  return SmallJob(absl::StrCat("model { layers: ", kLayers,
                               " moe { pattern { every: 1 first: 0 } } } recipe { preset: 'rmoe' "
                               "router { state { width: ",
                               kWidth, " mode: ", mode, " } } } ", more));
}

// The routers of a model, one above the other, each looking at an x of its own that stays as it is.
class Routers {
 public:
  explicit Routers(const std::string& mode = "CARRY")
      : spec_(Job(mode)), catalog_(CatalogOf(spec_)), weights_(RandomWeights(catalog_, 5)) {
    for (int layer = 0; layer < kLayers; ++layer) {
      RecurrentLogits recurrent;
      recurrent.projection = Id(absl::StrCat("layers.", layer, ".moe.router_projection"));
      recurrent.cell = {Id("router_cell.input_weight"), Id("router_cell.hidden_weight"),
                        Id("router_cell.input_bias"), Id("router_cell.hidden_bias")};
      recurrent.mode = spec_.recipe().router().state().mode();
      recurrent.use = layer;
      logits_.emplace_back(
          RouterLogitsConfig{Id(absl::StrCat("layers.", layer, ".moe.router")), recurrent});
      x_.push_back(Random({kTokens, 16}, 100 + layer));
    }
  }

  ParameterId Id(const std::string& name) const { return catalog_.Find(name); }
  at::Tensor& weight(const std::string& name) { return weights_[Id(name)]; }
  at::Tensor& x(int layer) { return x_[layer]; }

  // Logits by layer. The state that leaves layer `cleared` is set to zero.
  std::vector<at::Tensor> Run(int cleared = -1) {
    FixedWeights source(catalog_, weights_);
    std::vector<at::Tensor> all;
    saved_.assign(kLayers, {});
    at::Tensor state;
    for (int layer = 0; layer < kLayers; ++layer) {
      const auto out = logits_[layer].Forward(x_[layer], state, source, saved_[layer]);
      all.push_back(out.logits);
      state = layer == cleared ? at::zeros_like(out.state) : out.state;
    }
    return all;
  }

  // Gradients of the sum of the last layer's logits, after Run.
  LeafSink Backward() {
    FixedWeights source(catalog_, weights_);
    LeafSink sink(catalog_);
    at::Tensor dstate;
    for (int layer = kLayers - 1; layer >= 0; --layer) {
      const double scale = layer == kLayers - 1 ? 1 : 0;
      dstate = logits_[layer]
                   .BackwardInput(at::full({kTokens, 5}, scale, at::kFloat), dstate, source,
                                  saved_[layer])
                   .dstate;
      logits_[layer].BackwardWeight(saved_[layer], 0, sink);
    }
    return sink;
  }

 private:
  JobSpec spec_;
  ParameterCatalog catalog_;
  std::vector<at::Tensor> weights_;
  std::vector<RouterLogits> logits_;
  std::vector<at::Tensor> x_;
  std::vector<RouterLogits::Saved> saved_;
};

double Largest(const at::Tensor& t) { return t.abs().max().item<double>(); }

TEST(RMoe, RMOE1_TheCellIsTheLibrarys) {
  const JobSpec spec = Job();
  const ParameterCatalog catalog = CatalogOf(spec);
  const auto weights = RandomWeights(catalog, 5);
  FixedWeights source(catalog, weights);
  const GruParameters ids = {
      catalog.Find("router_cell.input_weight"), catalog.Find("router_cell.hidden_weight"),
      catalog.Find("router_cell.input_bias"), catalog.Find("router_cell.hidden_bias")};
  const GruCell cell(ids);
  const at::Tensor u = Random({kTokens, kWidth}, 1), h = Random({kTokens, kWidth}, 2);
  const at::Tensor dout = Random({kTokens, kWidth}, 3);
  GruCell::Saved saved;
  const at::Tensor out = cell.Forward(u, h, source, saved);
  const auto gradients = cell.BackwardInput(dout, source, saved);
  LeafSink sink(catalog);
  cell.BackwardWeight(saved, 0, 0, sink);

  const auto leaf = [](const at::Tensor& t) { return t.to(at::kDouble).detach().requires_grad_(); };
  const at::Tensor u2 = leaf(u), h2 = leaf(h);
  std::vector<at::Tensor> w;
  for (const ParameterId id : cell.parameters()) w.push_back(leaf(weights[id]));
  const at::Tensor expected = at::gru_cell(u2, h2, w[0], w[1], w[2], w[3]);
  (expected * dout).sum().backward();
  EXPECT_LT(RelativeError(out.to(at::kDouble), expected.detach()), 1e-6);
  EXPECT_LT(RelativeError(gradients.du.to(at::kDouble), u2.grad()), 1e-6);
  EXPECT_LT(RelativeError(gradients.dh.to(at::kDouble), h2.grad()), 1e-6);
  for (size_t i = 0; i < w.size(); ++i) {
    EXPECT_LT(RelativeError(sink.Sum(cell.parameters()[i]).to(at::kDouble), w[i].grad()), 1e-6)
        << i;
  }
}

TEST(RMoe, NoStateIsAStateOfZeros) {
  const JobSpec spec = Job();
  const ParameterCatalog catalog = CatalogOf(spec);
  const auto weights = RandomWeights(catalog, 5);
  FixedWeights source(catalog, weights);
  const GruCell cell(
      {catalog.Find("router_cell.input_weight"), catalog.Find("router_cell.hidden_weight"),
       catalog.Find("router_cell.input_bias"), catalog.Find("router_cell.hidden_bias")});
  const at::Tensor u = Random({kTokens, kWidth}, 1), dout = Random({kTokens, kWidth}, 3);
  const auto run = [&](const at::Tensor& h, LeafSink& sink) {
    GruCell::Saved saved;
    const at::Tensor out = cell.Forward(u, h, source, saved);
    const auto gradients = cell.BackwardInput(dout, source, saved);
    EXPECT_EQ(gradients.dh.defined(), h.defined());
    cell.BackwardWeight(saved, 0, 0, sink);
    return std::vector<at::Tensor>{out, gradients.du};
  };
  LeafSink without(catalog), with(catalog);
  const auto none = run({}, without), zeros = run(at::zeros_like(u), with);
  for (size_t i = 0; i < none.size(); ++i) EXPECT_TRUE(at::equal(none[i], zeros[i])) << i;
  for (const ParameterId id : cell.parameters()) {
    EXPECT_TRUE(at::equal(without.Sum(id), with.Sum(id))) << catalog[id].name;
  }
}

TEST(RMoe, RMOE2_TokensDoNotSeeEachOther) {
  Routers routers;
  const auto together = routers.Run();
  const at::Tensor order = at::tensor({3, 0, 6, 1, 5, 2, 4}, at::kLong);
  for (int layer = 0; layer < kLayers; ++layer) {
    routers.x(layer) = routers.x(layer).index_select(0, order);
  }
  const auto permuted = routers.Run();
  for (int layer = 0; layer < kLayers; ++layer) {
    EXPECT_LT(RelativeError(permuted[layer], together[layer].index_select(0, order)), 1e-6);
    routers.x(layer) = routers.x(layer).narrow(0, 0, 1).contiguous();  // token 3 alone
  }
  const auto alone = routers.Run();
  for (int layer = 0; layer < kLayers; ++layer) {
    EXPECT_LT(RelativeError(alone[layer], together[layer].narrow(0, 3, 1)), 1e-6);
  }
}

TEST(RMoe, RMOE3_AStateReachesTheLayersAboveOnly) {
  Routers carry;
  const auto z = carry.Run();
  const auto cleared = carry.Run(0);
  EXPECT_TRUE(at::equal(cleared[0], z[0]));
  EXPECT_GT(RelativeError(cleared[1], z[1]), 1e-3);
  EXPECT_GT(RelativeError(cleared[2], z[2]), 1e-4);
  const auto not_passed = Routers("NOT_PASSED").Run();
  EXPECT_TRUE(at::equal(not_passed[0], z[0]));
  EXPECT_GT(RelativeError(not_passed[1], z[1]), 1e-3);
  const auto detached = Routers("DETACH").Run();
  for (int layer = 0; layer < kLayers; ++layer) EXPECT_TRUE(at::equal(detached[layer], z[layer]));
}

// The scores of every layer, of a batch whose last token is replaced.
TEST(RMoe, RMOE4_ALaterTokenChangesNoEarlierRouting) {
  const JobSpec spec = Job();
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  const auto scores = [&](const MicroBatch& batch) {
    FixedWeights source(model.catalog(), weights);
    const PassOptions options;
    TransformerPass pass(model.transformer(), batch, options, source);
    pass.RunForward();
    std::vector<at::Tensor> all;
    for (int layer = 0; layer < kLayers; ++layer) {
      all.push_back(MoeBlock::RoutingOf(pass.contexts()[2 + 2 * layer]).scores);
    }
    return all;
  };
  MicroBatch batch = RandomMicroBatch(spec, 0, 1);
  const auto before = scores(batch);
  batch.tokens = batch.tokens.clone();
  batch.tokens[11] = (batch.tokens[11].item<int64_t>() + 1) % 40;
  const auto after = scores(batch);
  for (int layer = 0; layer < kLayers; ++layer) {
    EXPECT_TRUE(at::equal(after[layer].narrow(0, 0, 11), before[layer].narrow(0, 0, 11)));
    EXPECT_FALSE(at::equal(after[layer], before[layer]));
  }
}

TEST(RMoe, RMOE5_OnlyACarriedStateBringsTheGradientDown) {
  for (const char* mode : {"CARRY", "DETACH", "NOT_PASSED"}) {
    Routers routers(mode);
    routers.Run();
    const LeafSink sink = routers.Backward();
    const double first = Largest(sink.Sum(routers.Id("layers.0.moe.router_projection")));
    EXPECT_EQ(first > 0, mode == std::string("CARRY")) << mode << ": " << first;
    EXPECT_GT(Largest(sink.Sum(routers.Id("router_cell.input_weight"))), 0) << mode;
    EXPECT_GT(Largest(sink.Sum(routers.Id("router_cell.input_bias"))), 0) << mode;
  }
}

TEST(RMoe, RMOE6_OneCellForAllLayers) {
  const ParameterCatalog with = CatalogOf(Job());
  const ParameterCatalog without =
      CatalogOf(SmallJob("model { layers: 3 moe { pattern { every: 1 first: 0 } } }"));
  const int64_t d = 16, p = kWidth, experts = 5;
  EXPECT_EQ(with.total_elements() - without.total_elements(),
            kLayers * (d * p + p * experts - d * experts) + 6 * p * p + 6 * p);
  EXPECT_EQ(with[with.Find("router_cell.hidden_weight")].uses, kLayers);

  // A leaf a layer: their sum is the gradient of the one cell.
  Routers routers;
  routers.Run();
  const LeafSink sink = routers.Backward();
  std::set<int> uses;
  for (const auto& [leaf, value] : sink.leaves()) {
    if (std::get<0>(leaf) == routers.Id("router_cell.input_weight")) uses.insert(std::get<1>(leaf));
  }
  EXPECT_EQ(uses, (std::set<int>{0, 1, 2}));
}

TEST(RMoe, RMOE7_ASaturatedUpdateGateKeepsOrForgetsTheState) {
  Routers keeps;
  keeps.weight("router_cell.input_bias").narrow(0, kWidth, kWidth).fill_(1e4);
  for (const at::Tensor& z : keeps.Run()) EXPECT_EQ(Largest(z), 0);

  Routers forgets;
  forgets.weight("router_cell.input_bias").narrow(0, kWidth, kWidth).fill_(-1e4);
  forgets.weight("router_cell.hidden_weight").zero_();
  const auto z = forgets.Run();
  const auto cleared = forgets.Run(0);
  for (int layer = 0; layer < kLayers; ++layer) EXPECT_TRUE(at::equal(cleared[layer], z[layer]));
  EXPECT_GT(Largest(z[2]), 0);
}

// What a stage of a pipeline would send to the next, or back.
Bundle Sent(const Bundle& bundle) {
  const auto copy = [](const at::Tensor& t) { return t.defined() ? t.clone() : t; };
  return {copy(bundle.hidden), copy(bundle.router_state)};
}

TEST(RMoe, RMOE8_TheBundleIsAllThatCrossesACut) {
  const JobSpec spec = Job();
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  FixedWeights source(model.catalog(), weights);
  const MicroBatch batch = RandomMicroBatch(spec, 0, 1);
  const PassOptions options;
  TransformerPass whole(model.transformer(), batch, options, source);
  LeafSink expected(model.catalog());
  whole.RunForward();
  whole.RunBackward(expected);

  const auto blocks = model.transformer().blocks();
  for (size_t cut = 1; cut < blocks.size(); ++cut) {
    SCOPED_TRACE(blocks[cut]->name());
    TransformerPass stages[2] = {{model.transformer(), batch, options, source},
                                 {model.transformer(), batch, options, source}};
    const auto context = [&](size_t i) -> PassContext& { return stages[i >= cut].contexts()[i]; };
    LeafSink sink(model.catalog());
    Bundle bundle;
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (i == cut) bundle = Sent(bundle);
      bundle = blocks[i]->Forward(bundle, context(i));
    }
    EXPECT_EQ(stages[1].scalars().loss_sum, whole.scalars().loss_sum);
    bundle = {};
    for (size_t i = blocks.size(); i-- > 0;) {
      if (i + 1 == cut) bundle = Sent(bundle);
      bundle = blocks[i]->BackwardInput(bundle, context(i));
      blocks[i]->BackwardWeight(context(i), sink);
    }
    ASSERT_EQ(sink.leaves().size(), expected.leaves().size());
    for (const auto& [leaf, gradient] : expected.leaves()) {
      EXPECT_TRUE(at::equal(sink.leaves().at(leaf), gradient)) << std::get<0>(leaf);
    }
  }
}

TEST(RMoe, RMOE9_DenseLayersPassTheStateOn) {
  const JobSpec spec =
      SmallJob("model { layers: 3 } recipe { preset: 'rmoe' router { state { width: 6 } } }");
  const SingleRankModel model(spec);
  const auto weights = RandomWeights(model.catalog(), 5);
  FixedWeights source(model.catalog(), weights);
  const MicroBatch batch = RandomMicroBatch(spec, 0, 1);
  const PassOptions options;
  PassScalars scalars;
  const Bundle in = {Random({12, 16}, 1), Random({12, 6}, 2)};
  ASSERT_FALSE(model.catalog().IsMoe(2));
  for (Block* block : {static_cast<Block*>(&model.transformer().attention(2)),
                       &model.transformer().feed_forward(2)}) {
    PassContext context = {&batch, &options, &source, &scalars, nullptr};
    EXPECT_TRUE(block->Forward(in, context).router_state.is_same(in.router_state));
    EXPECT_TRUE(block->BackwardInput(in, context).router_state.is_same(in.router_state));
  }
}

TEST(RMoe, RMOE10_ExpertsSeeTheTokenAndNotTheState) {
  const JobSpec spec = Job();
  const SingleRankModel model(spec);
  auto weights = RandomWeights(model.catalog(), 5);
  for (const char* part : {"gate_up", "down"}) {
    for (int e = 1; e < 5; ++e) {
      weights[model.catalog().Find(absl::StrCat("layers.0.moe.experts.", e, ".", part))] =
          weights[model.catalog().Find(absl::StrCat("layers.0.moe.experts.0.", part))];
    }
  }
  const MicroBatch batch = RandomMicroBatch(spec, 0, 1);
  const PassOptions options;
  const at::Tensor x = Random({12, 16}, 1);
  const auto output = [&](uint64_t state) {
    FixedWeights source(model.catalog(), weights);
    PassScalars scalars;
    PassContext context = {&batch, &options, &source, &scalars, nullptr};
    return model.transformer()
        .feed_forward(0)
        .Forward({x, Random({12, kWidth}, state)}, context)
        .hidden;
  };
  EXPECT_LT(RelativeError(output(2), output(3)), 1e-6);
}

}  // namespace
}  // namespace moesaic
