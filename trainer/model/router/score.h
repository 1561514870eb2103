// score: router logits -> how well each expert suits a token. fp32.
#pragma once

#include <ATen/core/Tensor.h>

#include "proto/job.pb.h"

namespace moesaic {

struct ScoreKind {
  RouterScore kind;
  // A token's scores sum to 1, so they are its probabilities as they stand.
  bool sums_to_one;
  // logits fp32 [n, E] -> scores fp32 [n, E], overwritten.
  void (*forward)(const at::Tensor& logits, at::Tensor& scores);
  // dlogits = dscores through the score, overwritten; may be the same tensor as dscores.
  void (*backward)(const at::Tensor& scores, const at::Tensor& dscores, at::Tensor& dlogits);
};

// TORCH_CHECKs that the kind is in the table.
const ScoreKind& FindScore(RouterScore kind);

}  // namespace moesaic
