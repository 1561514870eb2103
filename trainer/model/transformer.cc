#include "trainer/model/transformer.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "proto/job_spec.h"
#include "trainer/model/feed_forward.h"

namespace moesaic {
namespace {

// The id of a parameter that the catalogue of the job must have.
ParameterId Need(const ParameterCatalog& catalog, const std::string& name) {
  const ParameterId id = catalog.Find(name);
  TORCH_CHECK(id != kNoParameter, "the catalogue has no parameter ", name);
  return id;
}

AttentionConfig AttentionOf(const TransformerInputs& in, int layer,
                            std::shared_ptr<const RopeTable> rope) {
  const ModelSpec& model = in.spec->model();
  const std::string prefix = absl::StrCat("layers.", layer, ".");
  AttentionConfig config;
  config.name = prefix + "attention";
  config.heads = model.heads();
  config.kv_heads = model.kv_heads();
  config.head_width = model.head_width();
  config.norm_epsilon = model.norm_epsilon();
  config.norm = Need(*in.catalog, prefix + "attention_norm");
  config.qkv = Need(*in.catalog, prefix + "attention.qkv");
  config.output = Need(*in.catalog, prefix + "attention.output");
  if (model.qk_norm()) {
    config.q_norm = Need(*in.catalog, prefix + "attention.q_norm");
    config.k_norm = Need(*in.catalog, prefix + "attention.k_norm");
  }
  config.rope = std::move(rope);
  return config;
}

RouterLogitsConfig LogitsOf(const TransformerInputs& in, const std::string& prefix, int moe_index) {
  const ParameterCatalog& catalog = *in.catalog;
  RouterLogitsConfig config = {Need(catalog, prefix + "router"), std::nullopt};
  if (!in.recipe.router.has_state()) return config;
  RecurrentLogits& recurrent = config.recurrent.emplace();
  recurrent.projection = Need(catalog, prefix + "router_projection");
  recurrent.cell = {Need(catalog, "router_cell.input_weight"),
                    Need(catalog, "router_cell.hidden_weight"),
                    Need(catalog, "router_cell.input_bias"),
                    Need(catalog, "router_cell.hidden_bias")};
  recurrent.mode = in.recipe.router.state().mode();
  recurrent.use = moe_index;
  return config;
}

RouterConfig RouterOf(const TransformerInputs& in, int layer) {
  const int64_t own = in.catalog->experts(layer);
  return {.rule = in.recipe.router,
          .experts = in.catalog->pool_experts(layer),
          .nulls = in.catalog->null_experts(),
          .active = in.spec->model().moe().active(),
          .seed = in.spec->train().seed(),
          .layer = layer,
          .own_begin = own * in.catalog->PlaceInPool(layer),
          .own = own,
          .schedule = in.recipe.schedule};
}

SwiGluLayer SwiGluOf(const ParameterCatalog& catalog, const std::string& prefix) {
  return {Need(catalog, prefix + "gate_up"), Need(catalog, prefix + "down")};
}

}  // namespace

Transformer::Transformer(const TransformerInputs& in)
    : kv_heads_(in.spec->model().kv_heads()),
      head_width_(in.spec->model().head_width()),
      positions_(in.positions > 0 ? in.positions : in.spec->model().sequence()) {
  const ModelSpec& model = in.spec->model();
  const ParameterCatalog& catalog = *in.catalog;
  const auto rope =
      std::make_shared<const RopeTable>(MakeRopeTable(positions_, head_width_, model.rope_base()));
  const auto add = [this](auto block) {
    auto* raw = block.get();
    blocks_.push_back(std::move(block));
    return raw;
  };

  const ParameterId table = Need(catalog, "embedding");
  embedding_ = add(std::make_unique<EmbeddingBlock>(table));
  int moe_index = 0;
  for (int layer = 0; layer < catalog.layers(); ++layer) {
    attention_.push_back(add(std::make_unique<AttentionBlock>(AttentionOf(in, layer, rope))));
    add(MakeFeedForward(in, layer, moe_index));
    if (catalog.IsMoe(layer)) ++moe_index;
  }
  const NormLayer norm(Need(catalog, "norm"), model.norm_epsilon());
  head_ = add(model.tie_head() ? std::make_unique<HeadBlock>(norm, table, 1)
                               : std::make_unique<HeadBlock>(norm, Need(catalog, "head"), 0));
}

std::unique_ptr<Block> Transformer::MakeFeedForward(const TransformerInputs& in, int layer,
                                                    int moe_index) const {
  const ModelSpec& model = in.spec->model();
  const ParameterCatalog& catalog = *in.catalog;
  const std::string prefix = absl::StrCat("layers.", layer, ".");
  const NormLayer norm(Need(catalog, prefix + "feed_forward_norm"), model.norm_epsilon());
  const MoeSpec& moe = model.moe();
  if (!catalog.IsMoe(layer)) {
    const std::string name = prefix + (IsMoeLayer(model, layer) ? "moe.base" : "dense");
    std::vector<SwiGluLayer> parts = {SwiGluOf(catalog, name + ".")};
    if (IsMoeLayer(model, layer) && moe.shared_width() > 0) {
      parts.push_back(SwiGluOf(catalog, prefix + "moe.shared."));
    }
    return std::make_unique<DenseBlock>(name, norm, std::move(parts));
  }
  MoeConfig config;
  config.layer = layer;
  config.moe_index = moe_index;
  config.use = catalog.PlaceInPool(layer);
  config.expert_width = moe.expert_width();
  config.logits = LogitsOf(in, prefix + "moe.", moe_index);
  config.router_bias = catalog.Find(prefix + "moe.router_bias");
  config.router_load = catalog.Find(prefix + "moe.router_load");
  if (moe.shared_width() > 0) config.shared = SwiGluOf(catalog, prefix + "moe.shared.");
  return std::make_unique<MoeBlock>(
      prefix + "moe", norm,
      MoeLayer(config, Router(RouterOf(in, layer)), ExpertPool(catalog, layer), in.parallel));
}

TransformerPass::TransformerPass(const Transformer& model, const MicroBatch& micro_batch,
                                 const PassOptions& options, WeightSource& weights)
    : model_(model), contexts_(model.blocks().size()) {
  for (PassContext& context : contexts_) {
    context.micro_batch = &micro_batch;
    context.options = &options;
    context.weights = &weights;
    context.scalars = &scalars_;
  }
}

void TransformerPass::RunForward(const Watch& watch) {
  Bundle bundle;
  for (size_t i = 0; i < contexts_.size(); ++i) {
    if (watch) watch(*model_.blocks()[i]);
    bundle = model_.blocks()[i]->Forward(bundle, contexts_[i]);
  }
}

void TransformerPass::RunBackward(GradientSink& sink, const Watch& watch) {
  Bundle gradient;
  for (size_t i = contexts_.size(); i-- > 0;) {
    if (watch) watch(*model_.blocks()[i]);
    gradient = model_.blocks()[i]->BackwardInput(gradient, contexts_[i]);
    model_.blocks()[i]->BackwardWeight(contexts_[i], sink);
    contexts_[i].saved.reset();
  }
}

}  // namespace moesaic
