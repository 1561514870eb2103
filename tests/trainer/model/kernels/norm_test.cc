#include "tests/trainer/model/kernels/close.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

constexpr double kEpsilon = 1e-5;

at::Tensor Reference(const at::Tensor& x, const at::Tensor& w) {
  return x * (x.square().mean(-1, true) + kEpsilon).rsqrt() * w;
}

TEST(RmsNorm, ForwardAndBackwardMatchAutograd) {
  at::manual_seed(1);
  for (at::ScalarType type : kComputeTypes) {
    for (auto [n, d] : {std::pair<int64_t, int64_t>{0, 16}, {1, 1}, {5, 23}, {300, 256}}) {
      SCOPED_TRACE(testing::Message() << type << " " << n << " x " << d);
      at::Tensor x = at::randn({n, d}).to(type), dy = at::randn({n, d}).to(type);
      at::Tensor w = at::randn({d}), residual = at::randn({n, d}).to(type);
      at::Tensor y = at::empty_like(x), r = at::empty({n}), dx = at::empty_like(x);
      at::Tensor dw = at::full({d}, 0.5f);
      RmsNorm(x, w, kEpsilon, y, r);
      RmsNormBackwardInput(dy, x, w, r, residual, dx);
      RmsNormBackwardWeight(dy, x, r, /*accumulate=*/true, dw);

      at::Tensor x64 = Leaf(x), w64 = Leaf(w);
      at::Tensor y64 = Reference(x64, w64);
      (y64 * dy.to(at::kDouble)).sum().backward();
      ExpectClose(y, y64.detach(), Tolerance(type));
      ExpectClose(dx, x64.grad() + residual.to(at::kDouble), Tolerance(type));
      ExpectClose(dw, w64.grad() + 0.5, 3e-6);

      RmsNormBackwardInput(dy, x, w, r, at::Tensor(), dx);
      RmsNormBackwardWeight(dy, x, r, /*accumulate=*/false, dw);
      ExpectClose(dx, x64.grad(), Tolerance(type));
      ExpectClose(dw, w64.grad(), 3e-6);
    }
  }
}

TEST(RmsNorm, InverseRmsIsOptionalAndShapesAreChecked) {
  at::Tensor x = at::randn({3, 8}), w = at::ones({8}), y = at::empty({3, 8});
  RmsNorm(x, w, kEpsilon, y, at::Tensor());
  ExpectClose(y, Reference(x, w), 3e-6);
  at::Tensor small = at::empty({3, 7});
  EXPECT_THROW(RmsNorm(x, w, kEpsilon, small, at::Tensor()), c10::Error);
  EXPECT_THROW(RmsNorm(x, w.to(at::kBFloat16), kEpsilon, y, at::Tensor()), c10::Error);
}

}  // namespace
}  // namespace moesaic
