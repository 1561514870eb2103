// Routing: what a router decided for the tokens of one logical micro-batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moesaic {

// n tokens, E experts, at most K experts a token: K is the widest fan-out of these tokens and may
// be another in the next micro-batch. Everything is fp32 or int64 on the CPU.
struct Routing {
  // Triples (token, expert, weight): slot k of token t goes to expert[t, k] with weight[t, k]. -1:
  // the token uses fewer experts (as few as none), or the pair was dropped; its weight is ignored.
  at::Tensor expert;  // int64 [n, K]
  at::Tensor weight;  // fp32 [n, K]

  // fp32 [n, E]: what weighs and what is balanced; m more columns where there are m null experts.
  at::Tensor scores;
  double logit_scale = 1;  // of the logits in `scores`: not 1 where a gate has a temperature
  at::Tensor candidates;  // bool [E]: experts that could be chosen; undefined: all
  at::Tensor selected;  // int64 [n, K]: `expert` before any drop
  // int64 [n, K]: what the balance losses count; mostly `selected` itself. Null experts count here
  // and have the ids after those of the pool.
  at::Tensor balanced;

  std::vector<int64_t> counts;  // by expert: chosen pairs, before any drop
  int64_t nulls = 0;            // chosen pairs with a null expert
  int64_t dropped = 0;          // pairs beyond capacity
  double aux_loss = 0;          // balance and z-loss, unscaled; 0 for no tokens

  // Opaque state of each token that travels to the next MoE layer; undefined where there is none.
  at::Tensor state;
};

}  // namespace moesaic
