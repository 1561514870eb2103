#include "trainer/checkpoint/format/mixtral_names.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace moesaic {

std::vector<std::string> MixtralTensorsOf(const ParameterSpec& parameter) {
  if (parameter.name == "embedding") return {"model.embed_tokens.weight"};
  if (parameter.name == "norm") return {"model.norm.weight"};
  if (parameter.name == "head") return {"lm_head.weight"};
  const std::string layer = absl::StrCat("model.layers.", parameter.layer, ".");
  const std::string expert =
      absl::StrCat(layer, "block_sparse_moe.experts.", parameter.expert, ".");
  const auto ends = [&](absl::string_view suffix) {
    return absl::EndsWith(parameter.name, suffix);
  };
  if (ends(".attention_norm")) return {layer + "input_layernorm.weight"};
  if (ends(".feed_forward_norm")) return {layer + "post_attention_layernorm.weight"};
  if (ends(".attention.output")) return {layer + "self_attn.o_proj.weight"};
  if (ends(".attention.qkv")) {
    return {layer + "self_attn.q_proj.weight", layer + "self_attn.k_proj.weight",
            layer + "self_attn.v_proj.weight"};
  }
  if (ends(".moe.router")) return {layer + "block_sparse_moe.gate.weight"};
  if (ends(".gate_up")) return {expert + "w1.weight", expert + "w3.weight"};
  return {expert + "w2.weight"};
}

}  // namespace moesaic
