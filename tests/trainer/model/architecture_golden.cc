#include "tests/trainer/model/architecture_golden.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/trainer/model/model_fixture.h"

namespace moesaic {
namespace {

std::vector<std::string> MixtralFeedForward(const std::string& layer,
                                            const ParameterSpec& parameter) {
  if (absl::EndsWith(parameter.name, "moe.router")) return {layer + "block_sparse_moe.gate.weight"};
  const std::string expert =
      absl::StrCat(layer, "block_sparse_moe.experts.", parameter.expert, ".");
  if (absl::EndsWith(parameter.name, "gate_up")) {
    return {expert + "w1.weight", expert + "w3.weight"};
  }
  return {expert + "w2.weight"};
}

std::vector<std::string> FeedForward(const std::string& layer, const ParameterSpec& parameter) {
  const auto ends = [&](const char* suffix) { return absl::EndsWith(parameter.name, suffix); };
  if (ends("moe.router")) return {layer + "mlp.gate.weight"};
  if (ends("moe.router_bias")) return {layer + "mlp.gate.e_score_correction_bias"};
  std::string at = layer + "mlp.";
  if (parameter.expert >= 0) at = absl::StrCat(layer, "mlp.experts.", parameter.expert, ".");
  if (absl::StrContains(parameter.name, ".shared.")) at = layer + "mlp.shared_experts.";
  if (ends("gate_up")) return {at + "gate_proj.weight", at + "up_proj.weight"};
  return {at + "down_proj.weight"};
}

// The Hugging Face tensors whose rows make up one parameter.
std::vector<std::string> SourcesOf(const std::string& architecture,
                                   const ParameterSpec& parameter) {
  if (parameter.name == "embedding") return {"model.embed_tokens.weight"};
  if (parameter.name == "norm") return {"model.norm.weight"};
  if (parameter.name == "head") return {"lm_head.weight"};
  const std::string layer = absl::StrCat("model.layers.", parameter.layer, ".");
  const std::string attention = layer + "self_attn.";
  const auto ends = [&](const char* suffix) { return absl::EndsWith(parameter.name, suffix); };
  if (ends("attention_norm")) return {layer + "input_layernorm.weight"};
  if (ends("feed_forward_norm")) return {layer + "post_attention_layernorm.weight"};
  if (ends("attention.output")) return {attention + "o_proj.weight"};
  if (ends("attention.q_norm")) return {attention + "q_norm.weight"};
  if (ends("attention.k_norm")) return {attention + "k_norm.weight"};
  if (ends("attention.qkv")) {
    return {attention + "q_proj.weight", attention + "k_proj.weight", attention + "v_proj.weight"};
  }
  return architecture == "mixtral" ? MixtralFeedForward(layer, parameter)
                                   : FeedForward(layer, parameter);
}

const std::map<std::string, const char*>& ModelsByArchitecture() {
  static const auto* models = new std::map<std::string, const char*>{
      {"mixtral",
       "model { layers: 2 rope_base: 10000 norm_epsilon: 1e-5 "
       "moe { experts: 4 active: 2 expert_width: 48 pattern { every: 1 first: 0 } } }"},
      {"qwen3_moe",
       "model { layers: 3 head_width: 12 rope_base: 500 norm_epsilon: 1e-6 qk_norm: true "
       "dense_width: 40 "
       "moe { experts: 6 active: 2 expert_width: 20 pattern { every: 1 first: 1 } } }"},
      {"dots1",
       "model { layers: 3 head_width: 12 rope_base: 500 norm_epsilon: 1e-6 qk_norm: true "
       "dense_width: 40 moe { experts: 12 active: 4 expert_width: 8 shared_width: 16 "
       "pattern { every: 1 first: 1 } } } "
       "recipe { preset: 'deepseek_v3' router { weight { scale: 2.5 } "
       "select { groups: 3 group_limit: 2 } } }"},
      {"llama", "model { layers: 2 rope_base: 10000 norm_epsilon: 1e-5 dense_width: 48 }"}};
  return *models;
}

}  // namespace

JobSpec GoldenJob(const std::string& architecture) {
  JobSpec spec = SmallJob(absl::StrCat(
      "model { hidden: 32 heads: 4 kv_heads: 2 sequence: 16 vocabulary: 64 } "
      "recipe { router { balance { coefficient: 0 } } } "
      "train { optimizer { adamw { lr: 3e-3 } } } ",
      ModelsByArchitecture().at(architecture)));
  if (architecture == "llama") spec.mutable_model()->clear_moe();
  if (architecture == "mixtral") spec.mutable_model()->clear_dense_width();
  return spec;
}

std::vector<at::Tensor> FromHuggingFace(const std::string& architecture,
                                        const ParameterCatalog& catalog,
                                        const std::map<std::string, at::Tensor>& tensors,
                                        const std::string& prefix) {
  std::vector<at::Tensor> result;
  for (const ParameterSpec& parameter : catalog.parameters()) {
    std::vector<at::Tensor> parts;
    for (const std::string& source : SourcesOf(architecture, parameter)) {
      const auto found = tensors.find(prefix + source);
      TORCH_CHECK(found != tensors.end() || !parameter.learnt, "no ", prefix, source);
      if (found != tensors.end()) parts.push_back(found->second);
    }
    result.push_back(parts.empty() ? at::Tensor() : at::cat(parts, 0));
    TORCH_CHECK(parts.empty() || result.back().sizes() == at::IntArrayRef(parameter.shape),
                parameter.name);
  }
  return result;
}

}  // namespace moesaic
