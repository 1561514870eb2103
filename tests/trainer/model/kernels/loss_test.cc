#include "tests/trainer/model/kernels/close.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

TEST(CrossEntropy, LossAndGradientMatchAutograd) {
  at::manual_seed(6);
  for (int64_t v : {1, 2, 37, 1000}) {
    at::Tensor logits = at::randn({9, v}) * 8, targets = at::randint(v, {9}, at::kLong);
    targets[2] = -1;
    targets[8] = -1;
    at::Tensor leaf = Leaf(logits);
    at::Tensor want = at::cross_entropy_loss(leaf, targets, {}, at::Reduction::Sum, -1);
    (want * 0.125).backward();
    const double sum = CrossEntropy(logits, targets);
    EXPECT_NEAR(sum, want.item<double>(), 2e-5 * std::max(1.0, std::abs(sum)));
    at::Tensor gradient = logits.clone();
    EXPECT_EQ(CrossEntropyInPlace(gradient, targets, 0.125), sum);
    ExpectClose(gradient, leaf.grad(), 1e-5);
    EXPECT_TRUE(gradient[2].eq(0).all().item<bool>());
  }
}

TEST(CrossEntropy, ExtremeLogitsAndTies) {
  at::Tensor logits = at::tensor({1e4f, -1e4f, 0.0f, 5.0f, 5.0f, 5.0f}).view({2, 3});
  at::Tensor targets = at::tensor(std::vector<int64_t>{1, 2}, at::kLong);
  EXPECT_NEAR(CrossEntropy(logits, targets), 2e4 + std::log(3.0), 1e-2);
  CrossEntropyInPlace(logits, targets, 3.0);
  EXPECT_TRUE(
      at::allclose(logits, at::tensor({3.0f, -3.0f, 0.0f, 1.0f, 1.0f, -2.0f}).view({2, 3})));
}

TEST(CrossEntropy, NoRowsAndWrongTargets) {
  at::Tensor none = at::empty({0, 5});
  EXPECT_EQ(CrossEntropyInPlace(none, at::empty({0}, at::kLong), 1.0), 0.0);
  at::Tensor logits = at::randn({1, 5});
  EXPECT_THROW(CrossEntropy(logits, at::full({1}, 5, at::kLong)), c10::Error);
}

}  // namespace
}  // namespace moesaic
