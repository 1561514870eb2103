// Qwen3's models of experts (arXiv 2505.09388).
#include <algorithm>

#include <nlohmann/json.hpp>

#include "proto/job_spec.h"
#include "trainer/checkpoint/convert/architecture.h"

namespace moesaic {
namespace {

// Newer writers say num_local_experts.
uint32_t Experts(ConfigReader& config) {
  if (config.Find("num_local_experts") == nullptr) return config.Count("num_experts");
  const uint32_t experts = config.Count("num_local_experts");
  config.Require("num_experts", experts);
  return experts;
}

void Read(ConfigReader& config, JobSpec& spec) {
  if (config.Flag("use_sliding_window", false)) RequireWindow("sliding_window", spec, config);
  ModelSpec& model = *spec.mutable_model();
  model.set_qk_norm(true);
  MoeSpec& moe = *model.mutable_moe();
  moe.set_experts(Experts(config));
  moe.set_active(config.Count("num_experts_per_tok"));
  moe.set_expert_width(config.Count("moe_intermediate_size"));
  RouterSpec& router = *spec.mutable_recipe()->mutable_router();
  router.mutable_weight()->set_renormalize(config.Flag("norm_topk_prob", false));
  router.mutable_balance()->set_coefficient(config.Number("router_aux_loss_coef", 0.001));

  const uint32_t step = config.Count("decoder_sparse_step", 1);
  if (step == 0) return config.Complain("decoder_sparse_step is 0");
  std::vector<bool> has_experts(model.layers());
  for (uint32_t layer = 0; layer < model.layers(); ++layer) {
    has_experts[layer] = (uint64_t{layer} + 1) % step == 0;
  }
  for (const uint32_t layer : config.Counts("mlp_only_layers", model.layers())) {
    if (layer < model.layers()) has_experts[layer] = false;
  }
  SetPattern(has_experts, config, spec);
  if (std::ranges::count(has_experts, false) > 0) {
    model.set_dense_width(config.Count("intermediate_size"));
  }
}

std::string Lacks(const JobSpec& spec) {
  const std::string router = LacksOfPlainRouter(spec);
  if (!router.empty()) return router;
  return spec.model().qk_norm() ? "" : "model.qk_norm is false";
}

void Write(const JobSpec& spec, nlohmann::ordered_json& config) {
  const ModelSpec& model = spec.model();
  const MoeSpec& moe = model.moe();
  auto dense = nlohmann::ordered_json::array();
  for (int layer = 0; layer < static_cast<int>(model.layers()); ++layer) {
    if (!IsMoeLayer(model, layer)) dense.push_back(layer);
  }
  // Without dense layers nothing has the width that must be there.
  config["intermediate_size"] = dense.empty() ? moe.expert_width() : model.dense_width();
  config["moe_intermediate_size"] = moe.expert_width();
  config["num_experts"] = moe.experts();
  config["num_experts_per_tok"] = moe.active();
  config["norm_topk_prob"] = spec.recipe().router().weight().renormalize();
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = dense;
  config["router_aux_loss_coef"] = spec.recipe().router().balance().coefficient();
  config["use_sliding_window"] = false;
}

}  // namespace

constexpr Architecture kQwen3Moe = {
    .name = "qwen3_moe",
    .model_class = "Qwen3MoeForCausalLM",
    .names = {.router = "mlp.gate.weight", .dense = "mlp.", .experts = "mlp.experts."},
    .read = Read,
    .lacks = Lacks,
    .write = Write,
};

}  // namespace moesaic
