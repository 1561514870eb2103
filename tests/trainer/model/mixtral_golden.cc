#include "tests/trainer/model/mixtral_golden.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/trainer/model/model_fixture.h"

namespace moesaic {
namespace {

// The Hugging Face tensors whose rows make up one parameter, without ".weight".
std::vector<std::string> SourcesOf(const ParameterSpec& parameter) {
  if (parameter.name == "embedding") return {"model.embed_tokens"};
  if (parameter.name == "norm") return {"model.norm"};
  if (parameter.name == "head") return {"lm_head"};
  const std::string layer = absl::StrCat("model.layers.", parameter.layer, ".");
  const auto ends = [&](const char* suffix) { return absl::EndsWith(parameter.name, suffix); };
  if (ends("attention_norm")) return {layer + "input_layernorm"};
  if (ends("feed_forward_norm")) return {layer + "post_attention_layernorm"};
  if (ends("attention.output")) return {layer + "self_attn.o_proj"};
  if (ends("attention.qkv")) {
    return {layer + "self_attn.q_proj", layer + "self_attn.k_proj", layer + "self_attn.v_proj"};
  }
  if (ends("moe.router")) return {layer + "block_sparse_moe.gate"};
  const std::string expert =
      absl::StrCat(layer, "block_sparse_moe.experts.", parameter.expert, ".");
  if (ends("gate_up")) return {expert + "w1", expert + "w3"};
  if (ends("down")) return {expert + "w2"};
  TORCH_CHECK(false, "no Hugging Face name for ", parameter.name);
}

}  // namespace

JobSpec GoldenJob() {
  return SmallJob(R"(
    model { layers: 2 hidden: 32 heads: 4 kv_heads: 2 sequence: 16 vocabulary: 64
            rope_base: 10000 norm_epsilon: 1e-5
            moe { experts: 4 active: 2 expert_width: 48 pattern { every: 1 first: 0 } } }
    recipe { router { balance { coefficient: 0 } } }
    train { optimizer { adamw { lr: 3e-3 } } })");
}

std::vector<at::Tensor> FromHuggingFace(const ParameterCatalog& catalog,
                                        const std::map<std::string, at::Tensor>& tensors,
                                        const std::string& prefix) {
  std::vector<at::Tensor> result;
  for (const ParameterSpec& parameter : catalog.parameters()) {
    std::vector<at::Tensor> parts;
    for (const std::string& source : SourcesOf(parameter)) {
      parts.push_back(tensors.at(absl::StrCat(prefix, source, ".weight")));
    }
    result.push_back(at::cat(parts, 0));
    TORCH_CHECK(result.back().sizes() == at::IntArrayRef(parameter.shape), parameter.name);
  }
  return result;
}

}  // namespace moesaic
