// Mixtral of experts (arXiv 2401.04088).
#include "trainer/checkpoint/convert/architecture.h"

namespace moesaic {
namespace {

void Read(ConfigReader& config, JobSpec& spec) {
  RequireWindow("sliding_window", spec, config);
  MoeSpec& moe = *spec.mutable_model()->mutable_moe();
  moe.set_experts(config.Count("num_local_experts"));
  moe.set_active(config.Count("num_experts_per_tok"));
  moe.set_expert_width(config.Count("intermediate_size"));
  // It divides the weights of the chosen experts by their sum.
  RouterSpec& router = *spec.mutable_recipe()->mutable_router();
  router.mutable_weight()->set_renormalize(true);
  router.mutable_balance()->set_coefficient(config.Number("router_aux_loss_coef", 0.001));
}

std::string Lacks(const JobSpec& spec) {
  std::string router = LacksOfPlainRouter(spec);
  if (!router.empty()) return router;
  const LayerPattern& pattern = spec.model().moe().pattern();
  if (pattern.every() != 1 || pattern.first() != 0) {
    return "model.moe.pattern leaves layers without experts";
  }
  if (spec.model().qk_norm()) return "model.qk_norm is true";
  if (!spec.recipe().router().weight().renormalize()) {
    return "recipe.router.weight.renormalize is false";
  }
  return "";
}

void Write(const JobSpec& spec, nlohmann::ordered_json& config) {
  const MoeSpec& moe = spec.model().moe();
  config["intermediate_size"] = moe.expert_width();
  config["num_local_experts"] = moe.experts();
  config["num_experts_per_tok"] = moe.active();
  config["router_aux_loss_coef"] = spec.recipe().router().balance().coefficient();
  config["sliding_window"] = nullptr;
}

}  // namespace

constexpr Architecture kMixtral = {
    .name = "mixtral",
    .model_class = "MixtralForCausalLM",
    .rope_base = 1e6,
    .norm_epsilon = 1e-5,
    .names = {.router = "block_sparse_moe.gate.weight",
              .experts = "block_sparse_moe.experts.",
              .gate = "w1.weight",
              .up = "w3.weight",
              .down = "w2.weight"},
    .read = Read,
    .lacks = Lacks,
    .write = Write,
};

}  // namespace moesaic
