#include "trainer/model/router/candidates.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "trainer/catalog/random_stream.h"

namespace moesaic {
namespace {

// floor(all * the share of the way from start_step to end_step); exact.
int64_t PartAdded(const CandidateInputs& in, int64_t all) {
  const uint64_t steps = in.rule->end_step() - in.rule->start_step();
  return static_cast<int64_t>(static_cast<uint64_t>(all) * (in.step - in.rule->start_step()) /
                              steps);
}

}  // namespace

int64_t CandidateCount(const CandidateInputs& in) {
  const int64_t from = std::min<int64_t>(in.rule->from(), in.experts);
  const bool stepwise = in.rule->schedule() == STEPWISE;
  if (in.step < in.rule->start_step() || (in.step == in.rule->start_step() && !stepwise)) {
    return from;
  }
  if (in.step > in.rule->end_step() || in.rule->start_step() == in.rule->end_step()) {
    return in.experts;
  }
  if (!stepwise) return from + PartAdded(in, in.experts - from);
  // Whole layers: one at start_step, the last at end_step.
  const int64_t layers = (in.experts - from + in.own - 1) / in.own;
  const int64_t added = layers == 0 ? 0 : 1 + PartAdded(in, layers - 1);
  return std::min(in.experts, from + added * in.own);
}

at::Tensor CandidateMask(const CandidateInputs& in) {
  const int64_t count = CandidateCount(in);
  if (count >= in.experts) return {};
  const RandomStream stream(in.seed, "candidates", absl::StrCat(in.layer, ".", in.step));
  std::vector<double> draws(in.experts);
  for (int64_t e = 0; e < in.experts; ++e) draws[e] = stream.Uniform(static_cast<uint64_t>(e));
  if (in.rule->mode() == LOCAL_FIRST) {
    for (int64_t e = in.own_begin; e < in.own_begin + in.own; ++e) draws[e] -= 1;
  }
  std::vector<int64_t> order(in.experts);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int64_t e) { return draws[e]; });
  at::Tensor mask = at::zeros({in.experts}, at::kBool);
  for (int64_t k = 0; k < count; ++k) mask.data_ptr<bool>()[order[k]] = true;
  return mask;
}

}  // namespace moesaic
