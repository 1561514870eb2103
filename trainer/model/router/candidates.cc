#include "trainer/model/router/candidates.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "trainer/catalog/random_stream.h"

namespace moesaic {
namespace {

// Of what is added between start_step and end_step.
double ShareAdded(const CandidatesSpec& rule, uint64_t step) {
  if (step > rule.end_step()) return 1;
  return static_cast<double>(step - rule.start_step()) /
         static_cast<double>(rule.end_step() - rule.start_step());
}

// Whole layers: one at start_step, the last at end_step.
int64_t LayersAdded(double share, int64_t layers) {
  if (layers <= 1) return layers;
  return 1 + static_cast<int64_t>(share * static_cast<double>(layers - 1));
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
  const double share = ShareAdded(*in.rule, in.step);
  if (!stepwise) return from + static_cast<int64_t>(share * static_cast<double>(in.experts - from));
  const int64_t layers = (in.experts - from + in.own - 1) / in.own;
  return std::min(in.experts, from + LayersAdded(share, layers) * in.own);
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
