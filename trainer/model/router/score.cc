#include "trainer/model/router/score.h"

#include <ATen/ATen.h>

#include <cmath>

#include "trainer/model/router/rows.h"

namespace moesaic {
namespace {

void SoftmaxForward(const at::Tensor& logits, at::Tensor& scores) {
  ForEachRow(logits, scores, [](std::span<const float> z, std::span<float> s) {
    float largest = z[0];
    for (float v : z) largest = std::max(largest, v);
    float sum = 0;
    for (size_t i = 0; i < z.size(); ++i) sum += s[i] = std::exp(z[i] - largest);
    for (float& v : s) v /= sum;
  });
}

void SoftmaxBackward(const at::Tensor& scores, const at::Tensor& dscores, at::Tensor& dlogits) {
  ForEachRow(scores, dscores, dlogits,
             [](std::span<const float> s, std::span<const float> ds, std::span<float> dz) {
               float inner = 0;
               for (size_t i = 0; i < s.size(); ++i) inner += s[i] * ds[i];
               for (size_t i = 0; i < s.size(); ++i) dz[i] = s[i] * (ds[i] - inner);
             });
}

void SigmoidForward(const at::Tensor& logits, at::Tensor& scores) {
  ForEachRow(logits, scores, [](std::span<const float> z, std::span<float> s) {
    for (size_t i = 0; i < z.size(); ++i) s[i] = 1 / (1 + std::exp(-z[i]));
  });
}

void SigmoidBackward(const at::Tensor& scores, const at::Tensor& dscores, at::Tensor& dlogits) {
  ForEachRow(scores, dscores, dlogits,
             [](std::span<const float> s, std::span<const float> ds, std::span<float> dz) {
               for (size_t i = 0; i < s.size(); ++i) dz[i] = ds[i] * s[i] * (1 - s[i]);
             });
}

constexpr ScoreKind kScores[] = {
    {SOFTMAX, true, SoftmaxForward, SoftmaxBackward},
    {SIGMOID, false, SigmoidForward, SigmoidBackward},
};

}  // namespace

const ScoreKind& FindScore(RouterScore kind) {
  for (const ScoreKind& score : kScores) {
    if (score.kind == kind) return score;
  }
  TORCH_CHECK(false, "router: there is no score ", RouterScore_Name(kind));
}

}  // namespace moesaic
