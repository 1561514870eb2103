// dots.llm1 (arXiv 2506.05767): the gate, bias and shared experts of DeepSeek-V3 over grouped-query
// attention with norms of queries and keys.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/convert/architecture.h"

namespace moesaic {
namespace {

// How many of a group's best scores make its own, there.
constexpr uint32_t kScoresOfAGroup = 2;
// Of config.json's that do not say.
constexpr uint32_t kWindow = 4096;
constexpr uint32_t kWindowLayers = 62;

// The window is that of the layers that layer_types calls so, or of those from max_window_layers on.
void RequireNoWindow(ConfigReader& config, const JobSpec& spec) {
  const uint32_t layers = spec.model().layers();
  bool windowed = false;
  if (const nlohmann::json* types = config.Find("layer_types")) {
    if (!types->is_array() || types->size() != layers) {
      return config.Complain("layer_types must be a list of one entry a layer");
    }
    windowed = std::ranges::any_of(
        *types, [](const nlohmann::json& type) { return type != "full_attention"; });
  } else {
    windowed = layers > config.Count("max_window_layers", kWindowLayers);
  }
  if (!windowed) return;
  if (config.Has("sliding_window")) return RequireWindow("sliding_window", spec, config);
  if (kWindow < spec.model().sequence()) {
    config.Complain(absl::StrCat("sliding_window is absent, which means ", kWindow,
                                 ", shorter than max_position_embeddings; attention here has no window"));
  }
}

void ReadGroups(ConfigReader& config, JobSpec& spec) {
  const uint32_t groups = config.Count("n_group", 1), limit = config.Count("topk_group", 1);
  if (groups == 0 || limit == 0 || limit > groups) {
    return config.Complain("topk_group must be from 1 to n_group");
  }
  if (limit == groups) return;  // no limit
  SelectSpec& select = *spec.mutable_recipe()->mutable_router()->mutable_select();
  select.set_groups(groups);
  select.set_group_limit(limit);
  select.set_group_score(TOP_SUM);
  const MoeSpec& moe = spec.model().moe();
  if (moe.active() / limit != kScoresOfAGroup || moe.experts() / groups < kScoresOfAGroup) {
    config.Complain(absl::StrCat(
        "with n_group ", groups, " and topk_group ", limit, " a group counts by its best ",
        kScoresOfAGroup, " experts there; here by as many as num_experts_per_tok / topk_group"));
  }
}

void Read(ConfigReader& config, JobSpec& spec) {
  RequireNoWindow(config, spec);
  config.Require("moe_layer_freq", 1);
  ModelSpec& model = *spec.mutable_model();
  model.set_qk_norm(true);
  MoeSpec& moe = *model.mutable_moe();
  moe.set_experts(config.Count("n_routed_experts"));
  moe.set_active(config.Count("num_experts_per_tok"));
  moe.set_expert_width(config.Count("moe_intermediate_size"));
  const uint64_t shared = uint64_t{config.Count("n_shared_experts")} * moe.expert_width();
  if (shared == 0 || shared > UINT32_MAX) {
    return config.Complain("n_shared_experts must be at least 1, and not too many");
  }
  moe.set_shared_width(static_cast<uint32_t>(shared));
  const uint32_t dense = config.Count("first_k_dense_replace", 0);
  if (dense > 0) model.set_dense_width(config.Count("intermediate_size"));
  if (dense >= model.layers()) return config.Complain("first_k_dense_replace leaves no experts");
  moe.mutable_pattern()->set_first(dense);

  RouterSpec& router = *spec.mutable_recipe()->mutable_router();
  router.set_score(SIGMOID);
  router.mutable_weight()->set_renormalize(config.Flag("norm_topk_prob", false));
  router.mutable_weight()->set_scale(config.Number("routed_scaling_factor", 1));
  // How it was balanced config.json does not say; these are the values of DeepSeek-V3.
  BalanceSpec& balance = *router.mutable_balance();
  balance.set_scope(SEQUENCE);
  balance.set_coefficient(1e-4);
  balance.mutable_bias()->set_speed(0.001);
  ReadGroups(config, spec);
}

std::string Lacks(const JobSpec& spec) {
  const ModelSpec& model = spec.model();
  const MoeSpec& moe = model.moe();
  const RouterSpec& router = spec.recipe().router();
  const SelectSpec& select = router.select();
  if (!model.has_moe()) return "model.moe is absent: the model has no experts";
  if (!model.qk_norm()) return "model.qk_norm is false";
  if (moe.pattern().every() != 1) return "model.moe.pattern.every is not 1";
  if (moe.shared_width() == 0) return "model.moe.shared_width is 0: there is no shared expert";
  if (moe.shared_width() % moe.expert_width() != 0) {
    return "model.moe.shared_width is no multiple of expert_width";
  }
  if (router.score() != SIGMOID) return "recipe.router.score is not sigmoid";
  if (!router.balance().has_bias()) return "recipe.router.balance.bias is absent";
  if (!select.has_group_limit() || select.group_limit() == select.groups()) return "";
  if (select.group_score() != TOP_SUM || moe.active() / select.group_limit() != kScoresOfAGroup ||
      moe.experts() / select.groups() < kScoresOfAGroup) {
    return absl::StrCat("recipe.router.select.groups do not count by their best ", kScoresOfAGroup,
                        " experts");
  }
  return "";
}

void Write(const JobSpec& spec, nlohmann::ordered_json& config) {
  const ModelSpec& model = spec.model();
  const MoeSpec& moe = model.moe();
  const RouterSpec& router = spec.recipe().router();
  const SelectSpec& select = router.select();
  const bool limited = select.has_group_limit() && select.group_limit() < select.groups();
  const uint32_t dense = moe.pattern().first();
  config["intermediate_size"] = dense > 0 ? model.dense_width() : moe.expert_width();
  config["moe_intermediate_size"] = moe.expert_width();
  config["n_routed_experts"] = moe.experts();
  config["n_shared_experts"] = moe.shared_width() / moe.expert_width();
  config["num_experts_per_tok"] = moe.active();
  config["first_k_dense_replace"] = dense;
  config["n_group"] = limited ? select.groups() : 1;
  config["topk_group"] = limited ? select.group_limit() : 1;
  config["norm_topk_prob"] = router.weight().renormalize();
  config["routed_scaling_factor"] = router.weight().scale();
  config["sliding_window"] = nullptr;
  config["max_window_layers"] = model.layers();
}

}  // namespace

constexpr Architecture kDots1 = {
    .name = "dots1",
    .model_class = "Dots1ForCausalLM",
    .names = {.router = "mlp.gate.weight",
              .router_bias = "mlp.gate.e_score_correction_bias",
              .dense = "mlp.",
              .shared = "mlp.shared_experts.",
              .experts = "mlp.experts."},
    .read = Read,
    .lacks = Lacks,
    .write = Write,
};

}  // namespace moesaic
