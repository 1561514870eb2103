#include "trainer/model/router/weight.h"

#include <ATen/ATen.h>

#include "trainer/model/router/rows.h"

namespace moesaic {
namespace {

// Keeps the sum of vanishing scores from dividing by zero, as DeepSeek-V3 does.
constexpr float kTiny = 1e-20f;

}  // namespace

at::Tensor SelectedWeights(const WeightSpec& rule, const at::Tensor& scores,
                           const at::Tensor& selected) {
  const int64_t active = selected.size(1);
  const float scale = static_cast<float>(rule.scale());
  at::Tensor weights = at::empty({selected.size(0), active}, at::kFloat);
  const int64_t* ids = selected.const_data_ptr<int64_t>();
  ParallelFor(selected.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::span<const float> s = RowOf(scores, row);
      const std::span<float> w = MutableRowOf(weights, row);
      float sum = 0;
      for (int64_t k = 0; k < active; ++k) {
        const int64_t expert = ids[row * active + k];
        sum += w[k] = expert < 0 ? 0 : s[expert];
      }
      const float factor = rule.renormalize() ? scale / (sum + kTiny) : scale;
      for (float& v : w) v *= factor;
    }
  });
  return weights;
}

void SelectedWeightsBackward(const WeightSpec& rule, const at::Tensor& scores,
                             const at::Tensor& selected, const at::Tensor& dweights,
                             at::Tensor& dscores) {
  const int64_t active = selected.size(1);
  const float scale = static_cast<float>(rule.scale());
  const int64_t* ids = selected.const_data_ptr<int64_t>();
  ParallelFor(selected.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::span<const float> s = RowOf(scores, row);
      const std::span<const float> dw = RowOf(dweights, row);
      const std::span<float> ds = MutableRowOf(dscores, row);
      const int64_t* chosen = ids + row * active;
      float sum = kTiny;
      float inner = 0;  // sum_k s_k dw_k
      for (int64_t k = 0; k < active; ++k) {
        if (chosen[k] < 0) continue;
        sum += s[chosen[k]];
        inner += s[chosen[k]] * dw[k];
      }
      for (int64_t k = 0; k < active; ++k) {
        if (chosen[k] < 0) continue;
        ds[chosen[k]] += rule.renormalize() ? scale * (dw[k] - inner / sum) / sum : scale * dw[k];
      }
    }
  });
}

}  // namespace moesaic
