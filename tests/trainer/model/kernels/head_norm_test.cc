#include <ATen/Parallel.h>

#include "tests/trainer/model/kernels/close.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

constexpr double kEpsilon = 1e-5;
constexpr int64_t kPast = 3;

int64_t QkvWidth(const AttentionShape& s) { return (s.heads + 2 * s.kv_heads) * s.head_width; }

// The norms and the rotation in fp64 on leaves, differentiable.
at::Tensor Reference(const AttentionShape& s, const at::Tensor& qkv, const at::Tensor& q_gain,
                     const at::Tensor& k_gain, const RopeTable& table, int64_t past) {
  const int64_t n = s.sequences * s.length;
  const auto parts = qkv.split_with_sizes(
      {s.heads * s.head_width, s.kv_heads * s.head_width, s.kv_heads * s.head_width}, 1);
  const auto angles = [&](const at::Tensor& of) {
    return of.narrow(0, past, s.length).to(at::kDouble).repeat({s.sequences, 2}).unsqueeze(1);
  };
  const auto turned = [&](const at::Tensor& part, const at::Tensor& gain) {
    const at::Tensor x = part.view({n, part.size(1) / s.head_width, s.head_width});
    const at::Tensor y = x * (x.square().mean(-1, true) + kEpsilon).rsqrt() * gain;
    const auto half = y.chunk(2, 2);
    return (y * angles(table.cos) + at::cat({-half[1], half[0]}, 2) * angles(table.sin))
        .view({n, part.size(1)});
  };
  return at::cat({turned(parts[0], q_gain), turned(parts[1], k_gain), parts[2]}, 1);
}

class HeadNorm : public ::testing::TestWithParam<AttentionShape> {
 protected:
  HeadNorm() { at::manual_seed(3); }

  const AttentionShape shape_ = GetParam();
  const RopeTable table_ = MakeRopeTable(shape_.length + kPast, shape_.head_width, 100);
  const HeadGains gains_ = {at::rand({shape_.head_width}) + 0.5,
                            at::rand({shape_.head_width}) - 0.3, kEpsilon};
};

TEST_P(HeadNorm, ForwardAndBackwardMatchAutograd) {
  for (at::ScalarType type : kComputeTypes) {
    SCOPED_TRACE(type);
    const int64_t n = shape_.sequences * shape_.length;
    const at::Tensor x = at::randn({n, QkvWidth(shape_)}).to(type);
    const at::Tensor dy = at::randn_like(x);
    at::Tensor y = x.clone(), dx = dy.clone(), dgain = at::full({2, shape_.head_width}, 7.0f);
    HeadNormSaved saved;
    NormAndRotate(shape_, gains_, table_, 0, y, &saved);
    NormAndRotateBackward(shape_, gains_, table_, saved, dx, dgain);

    at::Tensor x64 = Leaf(x), q64 = Leaf(gains_.q), k64 = Leaf(gains_.k);
    const at::Tensor y64 = Reference(shape_, x64, q64, k64, table_, 0);
    (y64 * dy.to(at::kDouble)).sum().backward();
    ExpectClose(y, y64.detach(), Tolerance(type));
    ExpectClose(dx, x64.grad(), Tolerance(type));
    ExpectClose(dgain, at::stack({q64.grad(), k64.grad()}), 3e-6);

    at::Tensor later = x.clone();
    NormAndRotate(shape_, gains_, table_, kPast, later, nullptr);
    ExpectClose(later, Reference(shape_, x64, q64, k64, table_, kPast).detach(), Tolerance(type));
  }
}

TEST_P(HeadNorm, SumsDoNotDependOnTheThreads) {
  const at::Tensor x = at::randn({shape_.sequences * shape_.length, QkvWidth(shape_)});
  const int threads = at::get_num_threads();
  at::Tensor gradients[2];
  for (int i = 0; i < 2; ++i) {
    at::set_num_threads(i == 0 ? 1 : 3);
    at::Tensor y = x.clone(), dx = x.clone();
    gradients[i] = at::empty({2, shape_.head_width});
    HeadNormSaved saved;
    NormAndRotate(shape_, gains_, table_, 0, y, &saved);
    NormAndRotateBackward(shape_, gains_, table_, saved, dx, gradients[i]);
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(gradients[0], gradients[1]));
}

INSTANTIATE_TEST_SUITE_P(Shapes, HeadNorm,
                         ::testing::Values(AttentionShape{0, 16, 2, 1, 8},
                                           AttentionShape{1, 1, 1, 1, 2},
                                           AttentionShape{2, 7, 4, 2, 6},
                                           AttentionShape{2, 75, 3, 3, 20},
                                           AttentionShape{3, 200, 6, 2, 64},
                                           AttentionShape{1, 130, 2, 1, 128}));

}  // namespace
}  // namespace moesaic
