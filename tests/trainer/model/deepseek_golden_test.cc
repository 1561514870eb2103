// The MoE blocks of DeepSeek-V2 and V3 against those of Hugging Face transformers: choices,
// weights, output and every gradient.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/trainer/model/golden.h"
#include "tests/trainer/model/model_fixture.h"
#include "trainer/model/moe_layer.h"

namespace moesaic {
namespace {

constexpr int kExperts = 16;

struct Case {
  const char* name;
  const char* router;
};

class DeepSeekGolden : public ::testing::TestWithParam<Case> {
 protected:
  DeepSeekGolden()
      : golden_(ReadGolden(absl::StrCat("deepseek/", GetParam().name, ".safetensors"))),
        spec_(SmallJob(absl::StrCat(
            "model { layers: 1 hidden: 16 moe { experts: 16 active: 4 expert_width: 12 "
            "shared_width: 24 pattern { every: 1 first: 0 } } } recipe { preset: 'deepseek_",
            GetParam().name,
            "' router { balance { coefficient: 0 } select { groups: 4 group_limit: 2 } ",
            GetParam().router, " } }"))),
        catalog_(CatalogOf(spec_)),
        mesh_(Mesh::Flat(1, 1)),
        placement_(ExpertPlacement::Even(mesh_, ExpertsByLayer(catalog_))),
        weights_(RandomWeights(catalog_, 1)) {
    for (ParameterId id = 0; id < catalog_.size(); ++id) {
      if (const auto [name, expert] = NameOf(catalog_[id]); !name.empty()) {
        const at::Tensor& stored = golden_.at(name);
        weights_[id] = (expert < 0 ? stored : stored[expert]).contiguous();
      }
    }
  }

  // The golden tensor of a parameter, and which of its parts; empty: it has none.
  static std::pair<std::string, int> NameOf(const ParameterSpec& parameter) {
    const std::string layer = "layers.0.moe.";
    if (parameter.name == layer + "router") return {"gate", -1};
    if (parameter.name == layer + "router_bias") return {"bias", -1};
    for (const std::string part : {"gate_up", "down"}) {
      if (parameter.name == layer + "shared." + part) return {"shared." + part, -1};
      if (parameter.name == absl::StrCat(layer, "experts.", parameter.expert, ".", part)) {
        return {part, parameter.expert};
      }
    }
    return {};
  }

  MoeLayer Layer() const {
    MoeConfig config;
    config.expert_width = 12;
    config.logits.weight = catalog_.Find("layers.0.moe.router");
    config.router_bias = catalog_.Find("layers.0.moe.router_bias");
    config.shared = SwiGluLayer(catalog_.Find("layers.0.moe.shared.gate_up"),
                                catalog_.Find("layers.0.moe.shared.down"));
    return MoeLayer(config,
                    Router({.rule = spec_.recipe().router(), .experts = kExperts, .active = 4}),
                    ExpertPool(catalog_, 0), {&mesh_, &placement_, 0, nullptr});
  }

  const std::map<std::string, at::Tensor> golden_;
  const JobSpec spec_;
  const ParameterCatalog catalog_;
  const Mesh mesh_;
  const ExpertPlacement placement_;
  std::vector<at::Tensor> weights_;
};

TEST_P(DeepSeekGolden, ChoicesOutputAndGradientsAreThoseOfTransformers) {
  FixedWeights source(catalog_, weights_);
  LeafSink sink(catalog_);
  const at::Tensor& x = golden_.at("x");
  MicroBatch batch;
  batch.id = 0;
  batch.sequences = 1;
  batch.length = x.size(0);
  const PassOptions options;
  PassScalars scalars;
  PassContext context = {&batch, &options, &source, &scalars, nullptr};
  const MoeLayer layer = Layer();
  MoeLayer::Saved saved;
  const Bundle out = layer.Forward(x, {at::zeros_like(x), {}}, context, saved);
  const auto [chosen, order] = saved.routing.selected.sort(1);
  EXPECT_TRUE(at::equal(chosen, golden_.at("chosen")));
  EXPECT_LT(RelativeError(saved.routing.weight.gather(1, order), golden_.at("weights")), 1e-6);
  EXPECT_LT(RelativeError(out.hidden, golden_.at("out")), 1e-5);

  const Bundle in = layer.BackwardInput({golden_.at("probe"), {}}, context, saved);
  layer.BackwardWeight(context, saved, sink);
  EXPECT_LT(RelativeError(in.hidden, golden_.at("gradient.x")), 1e-5);
  for (ParameterId id = 0; id < catalog_.size(); ++id) {
    const auto [name, expert] = NameOf(catalog_[id]);
    if (name.empty() || !catalog_[id].learnt) continue;
    const at::Tensor& gradient = golden_.at("gradient." + name);
    EXPECT_LT(RelativeError(sink.Sum(id), expert < 0 ? gradient : gradient[expert]), 1e-5)
        << catalog_[id].name;
  }
}

INSTANTIATE_TEST_SUITE_P(Blocks, DeepSeekGolden,
                         ::testing::Values(Case{"v2", "weight { scale: 4 }"},
                                           Case{"v3", "weight { scale: 2.5 }"}),
                         [](const auto& c) { return c.param.name; });

}  // namespace
}  // namespace moesaic
