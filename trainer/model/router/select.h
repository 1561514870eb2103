// select: scores -> the experts of each token. What is added to or masked from the scores counts
// here only: weights and losses never see it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "proto/job.pb.h"

namespace moesaic {

// The K experts of the largest score of each row, largest first; equal scores go to the lowest
// expert id. scores fp32 [n, E], K <= E -> int64 [n, K].
at::Tensor SelectTopK(const at::Tensor& scores, int64_t active);

// The experts of the largest scores of each row, largest first, until these sum up to `share`, at
// most `most` of them, at least one; then -1. Equal scores go to the lowest expert id. (Huang et
// al., "Harder Tasks Need More Experts", arXiv 2403.07652.) scores fp32 [n, E] -> int64 [n, K], K
// the most of a row.
at::Tensor SelectTopP(const at::Tensor& scores, double share, int64_t most);

// The experts of each row whose score is above `threshold`, by id: as many as there are, then -1.
// scores fp32 [n, E] -> int64 [n, K], K the most of a row, at least 1.
at::Tensor SelectAbove(const at::Tensor& scores, float threshold);

// scores + bias, fp32 [n, E]. An undefined bias is none (and `scores` itself is returned).
at::Tensor BiasedScores(const at::Tensor& scores, const at::Tensor& bias);

// scores with minus infinity where `candidates` (bool [E]) is false. Undefined candidates are all
// experts (and `scores` itself is returned).
at::Tensor WithoutOthers(const at::Tensor& scores, const at::Tensor& candidates);

// scores with minus infinity for the `count` experts of the largest score of each row. None:
// `scores` itself is returned.
at::Tensor WithoutBest(const at::Tensor& scores, int64_t count);

// The experts [g * E / groups, (g + 1) * E / groups) are group g.
struct GroupRule {
  int64_t groups = 1;
  int64_t limit = 1;  // of them may be used by one token
  GroupScore score = BEST;
};

// Sets to minus infinity, in place, the scores of all experts outside each token's best
// `rule.limit` groups; equal groups go to the lowest id. A group is as good as its best expert, or
// as the sum of its best max(1, active / limit) ones. scores fp32 [n, E].
void MaskGroups(const GroupRule& rule, int64_t active, at::Tensor& scores);

// Chosen pairs by expert. selected int64 [n, K] with ids below `experts`, or -1.
std::vector<int64_t> CountByExpert(const at::Tensor& selected, int64_t experts);

}  // namespace moesaic
