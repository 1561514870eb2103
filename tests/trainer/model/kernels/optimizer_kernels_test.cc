#include "trainer/model/kernels/optimizer_kernels.h"

#include "tests/trainer/model/kernels/close.h"

namespace moesaic {
namespace {

template <class T>
std::span<T> Span(const at::Tensor& t, int64_t begin, int64_t end) {
  return {static_cast<T*>(t.data_ptr()) + begin, static_cast<size_t>(end - begin)};
}

const AdamWCoefficients kCoefficients{.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f,
                                      .weight_decay = 0.1f, .bias_correction1 = 0.19f,
                                      .bias_correction2 = 0.0975f, .gradient_scale = 0.5f};

struct State {
  at::Tensor gradient, master, m, v, compute;
};

State MakeState(int64_t n, at::ScalarType type) {
  at::manual_seed(12);
  return {at::randn({n}), at::randn({n}), at::randn({n}) * 0.1, at::rand({n}) * 0.01,
          at::zeros({n}, type)};
}

template <class T>
void Step(const State& s, int64_t begin, int64_t end) {
  AdamWStep(kCoefficients,
            {Span<const float>(s.gradient, begin, end), Span<float>(s.master, begin, end),
             Span<float>(s.m, begin, end), Span<float>(s.v, begin, end)},
            Span<T>(s.compute, begin, end));
}

template <class T>
void ExpectFollowsTheFormula(at::ScalarType type) {
  State s = MakeState(1003, type);
  const auto f64 = [](const at::Tensor& t) { return t.to(at::kDouble); };
  const AdamWCoefficients& k = kCoefficients;
  at::Tensor g = f64(s.gradient) * k.gradient_scale;
  at::Tensor m = f64(s.m) * k.beta1 + g * (1 - k.beta1),
             v = f64(s.v) * k.beta2 + g * g * (1 - k.beta2);
  at::Tensor w = f64(s.master) * (1 - k.lr * k.weight_decay) -
                 k.lr * (m / k.bias_correction1) / ((v / k.bias_correction2).sqrt() + k.epsilon);
  Step<T>(s, 0, 1003);
  ExpectClose(s.m, m, 1e-6);
  ExpectClose(s.v, v, 1e-6);
  ExpectClose(s.master, w, 1e-6);
  EXPECT_TRUE(at::equal(s.compute, s.master.to(type)));
}

TEST(AdamWStep, FollowsTheFormulaAndRoundsTheComputeWeight) {
  ExpectFollowsTheFormula<float>(at::kFloat);
  ExpectFollowsTheFormula<Bf16>(at::kBFloat16);
}

// Shards may be cut anywhere: the same bits as in one piece.
TEST(AdamWStep, BitsDoNotDependOnWhereSpansStart) {
  State whole = MakeState(100000, at::kBFloat16), cut = MakeState(100000, at::kBFloat16);
  Step<Bf16>(whole, 0, 100000);
  int64_t begin = 0;
  for (int64_t end : {1, 4, 21, 37, 100, 4097, 65541, 99999, 100000}) {
    Step<Bf16>(cut, begin, end);
    begin = end;
  }
  EXPECT_TRUE(at::equal(whole.master, cut.master));
  EXPECT_TRUE(at::equal(whole.m, cut.m));
  EXPECT_TRUE(at::equal(whole.v, cut.v));
  EXPECT_TRUE(at::equal(whole.compute, cut.compute));
}

TEST(AdamWStep, ComputeMayBeAbsentAndSizesAreChecked) {
  State s = MakeState(10, at::kFloat), t = MakeState(10, at::kFloat);
  Step<float>(s, 0, 10);
  AdamWSpans spans{Span<const float>(t.gradient, 0, 10), Span<float>(t.master, 0, 10),
                   Span<float>(t.m, 0, 10), Span<float>(t.v, 0, 10)};
  AdamWStep(kCoefficients, spans, std::span<float>());
  EXPECT_TRUE(at::equal(s.master, t.master));
  spans.m = spans.m.first(9);
  EXPECT_THROW(AdamWStep(kCoefficients, spans, std::span<float>()), c10::Error);
}

TEST(SumSquares, IsByChunkInDouble) {
  at::manual_seed(13);
  const int64_t n = 2 * kNormChunk + 77;
  at::Tensor x = at::randn({n}) * 1e10;  // squares beyond what fp32 sums well
  std::vector<double> sums = SumSquaresByChunk(Span<const float>(x, 0, n));
  ASSERT_EQ(sums.size(), 3u);
  for (int64_t c = 0; c < 3; ++c) {
    const int64_t end = std::min(n, (c + 1) * kNormChunk);
    const double want = x.narrow(0, c * kNormChunk, end - c * kNormChunk)
                            .to(at::kDouble)
                            .square()
                            .sum()
                            .item<double>();
    EXPECT_NEAR(sums[c] / want, 1.0, 1e-12);
    // A shard that starts on the grid gives the same bits.
    EXPECT_EQ(SumSquaresByChunk(Span<const float>(x, c * kNormChunk, end))[0], sums[c]);
  }
  EXPECT_TRUE(SumSquaresByChunk({}).empty());
}

TEST(AllFinite, FindsInfinityAndNan) {
  at::Tensor x = at::full({70001}, 3e38f);
  EXPECT_TRUE(AllFinite(Span<const float>(x, 0, 70001)));
  for (int64_t at : {0, 33333, 70000}) {
    for (float bad : {INFINITY, -INFINITY, NAN}) {
      at::Tensor y = x.clone();
      y[at] = bad;
      EXPECT_FALSE(AllFinite(Span<const float>(y, 0, 70001))) << at << " " << bad;
    }
  }
}

}  // namespace
}  // namespace moesaic
