#include "trainer/model/router/gate.h"

#include <ATen/ATen.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "trainer/catalog/random_stream.h"
#include "trainer/model/router/rows.h"
#include "trainer/model/router/score.h"

namespace moesaic {
namespace {

void AddGumbelNoise(const GateInputs& in, at::Tensor& logits) {
  const RandomStream stream(in.seed, "gumbel", absl::StrCat(in.layer, ".", in.step));
  ParallelFor(logits.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::span<float> z = MutableRowOf(logits, row);
      const auto first = static_cast<uint64_t>(in.first_token + row) * z.size();
      for (size_t e = 0; e < z.size(); ++e) {
        z[e] -= static_cast<float>(std::log(-std::log(stream.Uniform(first + e))));
      }
    }
  });
}

}  // namespace

at::Tensor GateProbabilities(const at::Tensor& logits, const GateInputs& in) {
  at::Tensor probabilities = logits.clone();
  if (in.noise) AddGumbelNoise(in, probabilities);
  probabilities.div_(in.temperature);
  FindScore(SOFTMAX).forward(probabilities, probabilities);
  return probabilities;
}

}  // namespace moesaic
