#include "tests/trainer/model/kernels/close.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

TEST(SwiGlu, ForwardAndBackwardMatchAutograd) {
  at::manual_seed(2);
  for (at::ScalarType type : kComputeTypes) {
    for (auto [n, w] : {std::pair<int64_t, int64_t>{0, 16}, {1, 1}, {5, 23}, {300, 172}}) {
      SCOPED_TRACE(testing::Message() << type << " " << n << " x " << w);
      at::Tensor gate_up = (at::randn({n, 2 * w}) * 4).to(type);
      at::Tensor da = at::randn({n, w}).to(type);
      at::Tensor a = at::empty({n, w}, type), d = at::empty_like(gate_up);
      SwiGlu(gate_up, a);
      SwiGluBackward(da, gate_up, d);

      at::Tensor leaf = Leaf(gate_up);
      at::Tensor want = at::silu(leaf.narrow(1, 0, w)) * leaf.narrow(1, w, w);
      (want * da.to(at::kDouble)).sum().backward();
      ExpectClose(a, want.detach(), Tolerance(type));
      ExpectClose(d, leaf.grad(), Tolerance(type));
    }
  }
}

TEST(SwiGlu, FarFromZeroItNeitherOverflowsNorLosesTheLine) {
  at::Tensor gate_up =
      at::tensor({-200.0f, 200.0f, -90.0f, 90.0f, 1.0f, 1.0f, 1.0f, 1.0f}).view({1, 8});
  at::Tensor a = at::empty({1, 4});
  SwiGlu(gate_up, a);
  EXPECT_TRUE(a.isfinite().all().item<bool>());
  EXPECT_FLOAT_EQ(a[0][1].item<float>(), 200.0f);
  EXPECT_FLOAT_EQ(a[0][3].item<float>(), 90.0f);
  EXPECT_NEAR(a[0][0].item<float>(), 0.0f, 1e-30);
}

}  // namespace
}  // namespace moesaic
