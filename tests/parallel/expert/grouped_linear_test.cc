#include "parallel/expert/grouped_linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "parallel/expert/mkl_gemm.h"

namespace moesaic {
namespace {

struct Case {
  at::ScalarType type;
  std::vector<int64_t> rows;
  int64_t in;
  int64_t out;
};

// Odd sizes reach every tail of a kernel; the last ones are the sizes of real layers.
std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    cases.push_back({type, {3, 0, 1, 5}, 7, 5});
    cases.push_back({type, {17, 33, 2}, 65, 31});
    cases.push_back({type, {1}, 256, 344});
    cases.push_back({type, {0, 0}, 16, 16});
    cases.push_back({type, {50, 13, 64}, 172, 256});
    cases.push_back({type, {200, 97}, 256, 1376});
    cases.push_back({type, {700}, 1500, 130});
  }
  return cases;
}

// Relative to the largest element of the reference. fp32: rounding of sums; bf16 outputs: one unit
// of the last of 8 bits.
double Tolerance(at::ScalarType type) { return type == at::kFloat ? 2e-6 : 1.0 / 128; }

void ExpectClose(const at::Tensor& got, const at::Tensor& want, double tolerance) {
  if (want.numel() == 0) return;
  const double scale = std::max(want.abs().max().item<double>(), 1e-6);
  EXPECT_LE((got.to(at::kDouble) - want).abs().max().item<double>(), tolerance * scale);
}

struct Problem {
  at::Tensor x, dy;
  std::vector<LinearGroup> groups;
};

Problem MakeProblem(const Case& c) {
  at::manual_seed(7);
  int64_t n = 0;
  Problem p;
  for (int64_t rows : c.rows) {
    p.groups.push_back({n, rows, at::randn({c.out, c.in}).to(c.type)});
    n += rows;
  }
  p.x = at::randn({n, c.in}).to(c.type);
  p.dy = at::randn({n, c.out}).to(c.type);
  return p;
}

TEST(GroupedLinear, ForwardAndBackwardInputMatchFloat64) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(testing::Message() << c.type << " in " << c.in << " out " << c.out);
    Problem p = MakeProblem(c);
    at::Tensor y = at::full({p.x.size(0), c.out}, 9.0).to(c.type);
    at::Tensor dx = at::full({p.x.size(0), c.in}, 9.0).to(c.type);
    GroupedLinear(p.x, p.groups, y);
    GroupedLinearBackwardInput(p.dy, p.groups, dx);
    for (const LinearGroup& g : p.groups) {
      const at::Tensor w = g.weight.to(at::kDouble);
      auto rows = [&](const at::Tensor& t) { return t.narrow(0, g.begin, g.rows).to(at::kDouble); };
      ExpectClose(rows(y), at::mm(rows(p.x), w.t()), Tolerance(c.type));
      ExpectClose(rows(dx), at::mm(rows(p.dy), w), Tolerance(c.type));
    }
  }
}

TEST(GroupedLinear, AFloatOutputOfBFloat16IsNotRounded) {
  for (const Case& c : Cases()) {
    const Problem p = MakeProblem({at::kBFloat16, c.rows, c.in, c.out});
    at::Tensor y = at::empty({p.x.size(0), c.out}, at::kFloat);
    GroupedLinear(p.x, p.groups, y);
    for (const LinearGroup& g : p.groups) {
      const at::Tensor want = at::mm(p.x.narrow(0, g.begin, g.rows).to(at::kDouble),
                                     g.weight.to(at::kDouble).t());
      ExpectClose(y.narrow(0, g.begin, g.rows), want, Tolerance(at::kFloat));
    }
  }
}

TEST(GroupedLinear, BackwardWeightIsFloat32AndAccumulates) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(testing::Message() << c.type << " in " << c.in << " out " << c.out);
    Problem p = MakeProblem(c);
    std::vector<WeightGradient> gradients;
    std::vector<at::Tensor> before;
    for (const LinearGroup& g : p.groups) {
      before.push_back(at::randn({c.out, c.in}));
      gradients.push_back({g.begin, g.rows, before.back().clone(), gradients.size() % 2 == 1});
    }
    GroupedLinearBackwardWeight(p.dy, p.x, gradients);
    for (size_t i = 0; i < gradients.size(); ++i) {
      const WeightGradient& g = gradients[i];
      auto rows = [&](const at::Tensor& t) { return t.narrow(0, g.begin, g.rows).to(at::kDouble); };
      at::Tensor want = at::mm(rows(p.dy).t(), rows(p.x));
      if (g.accumulate) want = want + before[i];
      ExpectClose(g.gradient, want, 2e-6);
    }
  }
}

TEST(GroupedLinear, RowsOfNoGroupAreLeftAlone) {
  at::Tensor x = at::randn({6, 8}), y = at::full({6, 4}, 3.0f);
  std::vector<LinearGroup> groups = {{4, 2, at::randn({4, 8})}};
  GroupedLinear(x, groups, y);
  EXPECT_TRUE(at::equal(y.narrow(0, 0, 4), at::full({4, 4}, 3.0f)));
  EXPECT_FALSE(at::equal(y.narrow(0, 4, 2), at::full({2, 4}, 3.0f)));
}

// Reproducible mode rests on it: alone, or among others, elsewhere in the batch, the bits are
// equal.
TEST(GroupedLinear, BitsOfAGroupDependOnItsOperandsOnly) {
  for (const Case& c : Cases()) {
    Problem p = MakeProblem(c);
    at::Tensor y = at::zeros({p.x.size(0), c.out}).to(c.type);
    at::Tensor dx = at::zeros({p.x.size(0), c.in}).to(c.type);
    std::vector<WeightGradient> gradients;
    for (const LinearGroup& g : p.groups) {
      gradients.push_back({g.begin, g.rows, at::zeros({c.out, c.in}), false});
    }
    GroupedLinear(p.x, p.groups, y);
    GroupedLinearBackwardInput(p.dy, p.groups, dx);
    GroupedLinearBackwardWeight(p.dy, p.x, gradients);
    for (size_t i = 0; i < p.groups.size(); ++i) {
      const LinearGroup& g = p.groups[i];
      // Copies lie elsewhere in memory, after an odd row.
      auto copy = [&](const at::Tensor& t) {
        return at::cat({at::zeros({1, t.size(1)}, t.options()), t.narrow(0, g.begin, g.rows)});
      };
      std::vector<LinearGroup> one = {{1, g.rows, g.weight.clone()}};
      at::Tensor y1 = at::zeros({g.rows + 1, c.out}).to(c.type);
      at::Tensor dx1 = at::zeros({g.rows + 1, c.in}).to(c.type);
      std::vector<WeightGradient> one_gradient = {{1, g.rows, at::zeros({c.out, c.in}), false}};
      GroupedLinear(copy(p.x), one, y1);
      GroupedLinearBackwardInput(copy(p.dy), one, dx1);
      GroupedLinearBackwardWeight(copy(p.dy), copy(p.x), one_gradient);
      EXPECT_TRUE(at::equal(y1.narrow(0, 1, g.rows), y.narrow(0, g.begin, g.rows)));
      EXPECT_TRUE(at::equal(dx1.narrow(0, 1, g.rows), dx.narrow(0, g.begin, g.rows)));
      EXPECT_TRUE(at::equal(one_gradient[0].gradient, gradients[i].gradient));
    }
  }
}

// The way of CPUs with tiles, which any CPU can go.
TEST(MklGemm, AgreesWithGemm) {
  const int64_t m = 45, n = 70, k = 33;
  at::Tensor a = at::randn({m, k}).to(at::kBFloat16), b = at::randn({k, n}).to(at::kBFloat16);
  at::Tensor a_t = a.t().contiguous(), b_t = b.t().contiguous();
  auto data = [](const at::Tensor& t) { return static_cast<Bf16*>(t.data_ptr()); };
  const at::Tensor want = at::mm(a.to(at::kDouble), b.to(at::kDouble));
  for (bool transposed : {false, true}) {
    const MatrixRef<Bf16> ra =
        transposed ? MatrixRef<Bf16>{data(a_t), 1, m} : MatrixRef<Bf16>{data(a), k, 1};
    const MatrixRef<Bf16> rb =
        transposed ? MatrixRef<Bf16>{data(b_t), 1, k} : MatrixRef<Bf16>{data(b), n, 1};
    at::Tensor c = at::ones({m, n}), narrow = at::empty({m, n}, at::kBFloat16);
    MklGemm({m, n, k}, ra, rb, GemmResult<float>{c.data_ptr<float>(), n, true});
    ExpectClose(c, want + 1, 2e-6);
    MklGemm({m, n, k}, ra, rb, GemmResult<Bf16>{data(narrow), n});
    ExpectClose(narrow, want, Tolerance(at::kBFloat16));
  }
}

TEST(GroupedLinear, BitsDoNotDependOnTheNumberOfThreads) {
  const int before = at::get_num_threads();
  for (const Case& c : Cases()) {
    Problem p = MakeProblem(c);
    at::Tensor y[2], gradient[2];
    for (int i = 0; i < 2; ++i) {
      at::set_num_threads(i == 0 ? 1 : 3);
      y[i] = at::zeros({p.x.size(0), c.out}).to(c.type);
      gradient[i] = at::ones({c.out, c.in});
      GroupedLinear(p.x, p.groups, y[i]);
      std::vector<WeightGradient> all = {{0, p.x.size(0), gradient[i], true}};
      GroupedLinearBackwardWeight(p.dy, p.x, all);
    }
    EXPECT_TRUE(at::equal(y[0], y[1]));
    EXPECT_TRUE(at::equal(gradient[0], gradient[1]));
  }
  at::set_num_threads(before);
}

TEST(GroupedLinear, WrongWidthIsRefused) {
  at::Tensor x = at::randn({2, 8}), y = at::zeros({2, 4});
  std::vector<LinearGroup> groups = {{0, 2, at::randn({4, 7})}};
  EXPECT_THROW(GroupedLinear(x, groups, y), c10::Error);
  groups = {{1, 2, at::randn({4, 8})}};
  EXPECT_THROW(GroupedLinear(x, groups, y), c10::Error);
}

}  // namespace
}  // namespace moesaic
