// balance: auxiliary losses of one layer and one logical micro-batch of T tokens, each the mean
// over parts of T' tokens: the whole micro-batch, or each of its sequences.
//
//   expert:  alpha  * sum_i f_i P_i,       f_i = E / (K T') * count_i       (no gradient)
//                                          P_i = mean over tokens of p_i
//     K: experts a token; where that varies, its mean, so that the mean f_i is 1 all the same.
//     p: the scores where they sum to 1 (softmax), else the scores divided by their sum over all E.
//     (Fedus et al., "Switch Transformers", 2022, eq. 4; Dai et al., DeepSeekMoE, eq. 12-14.)
//     With m null experts E counts them, too, and f_i of each is the mean of theirs: it does not
//     matter which of them is chosen (AdaMoE: Zeng et al., arXiv 2406.13233, eq. 7).
//   group:   alpha2 * sum_j f'_j P'_j,     f'_j = mean of f_i, P'_j = sum of P_i over group j
//     (DeepSeekMoE, eq. 15-17, "device level")
//   communication:  alpha3 * sum_j f''_j P'_j,   f''_j = D / (M T') * tokens with an expert in
//     group j, D groups of which a token may use M   (DeepSeek-V2, eq. 29-31)
//   entropy: b * mean over tokens of -sum_i p_i log p_i            (Huang et al., arXiv 2403.07652)
//   z-loss:  c * mean over tokens of logsumexp(logits)^2               (Zoph et al., ST-MoE, 2022)
//   pool:    beta * sum_e f_e P_e over the experts of a pool that r layers share, with the counts
//     of all r layers and the mean of p over their tokens, so that no expert is starved by all
//     layers at once (the "physical level" of experts that layers share). Over the logical
//     micro-batch, whatever the scope.
//
// Each but the entropy and the z-loss is its coefficient at perfect balance, and linear in p:
// together they are one price an expert that every token of a part pays.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "proto/job.pb.h"
#include "trainer/metrics/layer_routing.h"
#include "trainer/model/router/score.h"

namespace moesaic {

struct BalanceInputs {
  const BalanceSpec* rule = nullptr;
  uint64_t step = 0;  // 0-based: alpha depends on it (BalanceSpec::later)
  const ScoreKind* score = nullptr;
  at::Tensor logits;          // fp32 [T, E]
  at::Tensor scores;          // fp32 [T, E]
  at::Tensor selected;        // int64 [T, K]: what counts, before any drop; -1: no expert
  int64_t sequences = 1;      // divides T
  int64_t groups = 1;         // D; divides E
  int64_t group_limit = 1;    // M
  int64_t nulls = 0;          // m: the last of E
  // bool [E]: the losses are over these experts alone, E stands for their number and p for the
  // scores divided by the sum of theirs; undefined: all.
  at::Tensor candidates = {};
  // K where f_i is not to have a mean of 1: the losses then grow with the experts a token takes. 0:
  // as above.
  double fan_out = 0;
  // fp32 [E], for BalanceScope GLOBAL: chosen pairs of each expert over the global batch of the
  // step before; undefined or all zero: not known, the micro-batch's own.
  at::Tensor load = {};
  // By expert, what a token pays for p_e beside (PoolPrices); empty: nothing.
  std::span<const double> pool_prices = {};
};

// Whether a loss of the layer in that step counts what is selected.
bool CountsSelected(const BalanceSpec& rule, uint64_t step);

// The loss, without the pool's; 0 when T is 0. Sums run in token order, in double.
double BalanceLoss(const BalanceInputs& inputs);

// Adds factor * d(all but the z-loss)/d(scores) to dscores, which the score's backward still has to
// pass, and factor * d(z-loss)/d(logits) to dlogits. Both fp32 [T, E].
void BalanceLossBackward(const BalanceInputs& inputs, double factor, at::Tensor& dscores,
                         at::Tensor& dlogits);

// By expert: p_e summed over the tokens; 0 for what was no candidate.
std::vector<double> ProbabilitySums(const BalanceInputs& inputs);

// By expert: what each token of each layer of a pool pays for p_e, from what each of its layers
// chose among `tokens` tokens (LayerRouting::counts). All 0 where nothing was chosen.
std::vector<double> PoolPrices(double beta, std::span<const LayerRouting> layers, int64_t tokens);

}  // namespace moesaic
