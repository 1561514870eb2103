// balance: auxiliary losses of one layer and one logical micro-batch of T tokens.
//
//   balance:  alpha * E * sum_i f_i P_i,   f_i = count_i / (K T)   (no gradient; before any drop)
//                                          P_i = mean over tokens of p_i
//     p: the scores where they sum to 1 (softmax), else the scores divided by their sum over all E.
//     (Fedus et al., "Switch Transformers", 2022, eq. 4; K experts a token as in DeepSeek-V3.)
//   z-loss:   c * mean over tokens of logsumexp(logits)^2           (Zoph et al., "ST-MoE", 2022)
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "proto/job.pb.h"
#include "trainer/model/router/score.h"

namespace moesaic {

struct BalanceInputs {
  const BalanceSpec* rule = nullptr;
  const ScoreKind* score = nullptr;
  at::Tensor logits;                // fp32 [T, E]
  at::Tensor scores;                // fp32 [T, E]
  std::span<const int64_t> counts;  // by expert, before any drop
  int64_t active = 0;               // K
};

// The loss; 0 when T is 0. Sums run in token order, in double.
double BalanceLoss(const BalanceInputs& inputs);

// Adds factor * d(balance)/d(scores) to dscores, which the score's backward still has to pass, and
// factor * d(z-loss)/d(logits) to dlogits. Both fp32 [T, E].
void BalanceLossBackward(const BalanceInputs& inputs, double factor, at::Tensor& dscores,
                         at::Tensor& dlogits);

}  // namespace moesaic
