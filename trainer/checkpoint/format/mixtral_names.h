// What a parameter is called in a Hugging Face Mixtral folder. A parameter may be several tensors
// there, one above the other (their rows in order):
//
//   embedding, norm, head                 model.embed_tokens, model.norm, lm_head
//   layers.L.attention_norm               model.layers.L.input_layernorm
//   layers.L.attention.qkv                ...self_attn.q_proj, k_proj, v_proj
//   layers.L.attention.output             ...self_attn.o_proj
//   layers.L.feed_forward_norm            ...post_attention_layernorm
//   layers.L.moe.router                   ...block_sparse_moe.gate
//   layers.L.moe.experts.E.gate_up        ...block_sparse_moe.experts.E.w1, w3
//   layers.L.moe.experts.E.down           ...block_sparse_moe.experts.E.w2
#pragma once

#include <string>
#include <vector>

#include "trainer/catalog/parameter_catalog.h"

namespace moesaic {

// The tensors whose rows make up a parameter, in order. The parameter must be one of the above.
std::vector<std::string> MixtralTensorsOf(const ParameterSpec& parameter);

}  // namespace moesaic
