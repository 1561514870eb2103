// The levels of CPU agree, and a tail does what a whole vector does.
#include "trainer/model/kernels/row_kernels.h"

#include "parallel/simd/cpu_level.h"
#include "tests/trainer/model/kernels/close.h"

namespace moesaic {
namespace {

std::vector<const RowKernelTable*> Tables() {
  std::vector<const RowKernelTable*> tables = {&kRowKernelsGeneric};
  if (DetectCpuLevel() >= CpuLevel::kAvx2) tables.push_back(&kRowKernelsAvx2);
  if (DetectCpuLevel() >= CpuLevel::kAvx512) tables.push_back(&kRowKernelsAvx512);
  if (DetectCpuLevel() >= CpuLevel::kAvx512Bf16) tables.push_back(&kRowKernelsAvx512Bf16);
  return tables;
}

TEST(RowKernels, EveryLevelExponentiatesToTwoUnitsOfTheLastPlace) {
  std::vector<float> x;
  for (int i = -8730; i <= 0; ++i) x.push_back(i * 0.01f);
  x.push_back(-1000.0f);
  x.push_back(-INFINITY);
  for (const RowKernelTable* table : Tables()) {
    std::vector<float> y = x;
    table->floats.scaled_softmax(y.data(), 0.0f, 1.0f, y.size());
    for (size_t i = 0; i + 2 < x.size(); ++i) {
      const double want = std::exp(static_cast<double>(x[i]));
      EXPECT_NEAR(y[i] / want, 1.0, 2.5e-7) << x[i];
    }
    EXPECT_EQ(y[x.size() - 2], 0.0f);
    EXPECT_EQ(y[x.size() - 1], 0.0f);
  }
}

TEST(RowKernels, EveryLevelRoundsToBf16AsAten) {
  std::vector<float> x = {1.0f, 1.00390625f, 1.01171875f, -3.0e38f, 3.4e38f, 1e-37f, INFINITY,
                          NAN,  -0.0f,       0.1f};
  at::Tensor want = at::from_blob(x.data(), {static_cast<int64_t>(x.size())}).to(at::kBFloat16);
  for (const RowKernelTable* table : Tables()) {
    at::Tensor got = at::empty({static_cast<int64_t>(x.size())}, at::kBFloat16);
    table->bf16.scale_to(x.data(), 1.0f, static_cast<Bf16*>(got.data_ptr()), x.size());
    EXPECT_TRUE(at::allclose(got.to(at::kFloat), want.to(at::kFloat), 0, 0, /*equal_nan=*/true));
  }
}

// A width with a tail, with a state and without one.
TEST(RowKernels, EveryLevelStepsAGatedUnitAsTheLibrary) {
  at::manual_seed(15);
  constexpr int64_t kRows = 3, kWidth = 21;
  const at::Tensor u = at::randn({kRows, kWidth}), w_i = at::randn({3 * kWidth, kWidth});
  const at::Tensor w_h = at::randn({3 * kWidth, kWidth});
  const at::Tensor b_i = at::randn({3 * kWidth}), b_h = at::randn({3 * kWidth});
  const at::Tensor input = at::matmul(u, w_i.t());
  for (const at::Tensor& h : {at::randn({kRows, kWidth}), at::zeros({kRows, kWidth})}) {
    const at::Tensor hidden = at::matmul(h, w_h.t());
    const bool has_state = h.any().item<bool>();
    const at::Tensor want = at::gru_cell(u, h, w_i, w_h, b_i, b_h);
    for (const RowKernelTable* table : Tables()) {
      at::Tensor gates = at::empty({kRows, 4 * kWidth}), after = at::empty_like(h);
      table->floats.gru({.input = input.data_ptr<float>(),
                         .hidden = has_state ? hidden.data_ptr<float>() : nullptr,
                         .input_bias = b_i.data_ptr<float>(),
                         .hidden_bias = b_h.data_ptr<float>(),
                         .before = has_state ? h.data_ptr<float>() : nullptr,
                         .gates = gates.data_ptr<float>(),
                         .after = after.data_ptr<float>()},
                        kRows, kWidth);
      ExpectClose(after, want, 2e-6);
    }
  }
}

TEST(RowKernels, LevelsAgree) {
  at::manual_seed(14);
  at::Tensor x = at::randn({4, 77}), w = at::randn({77});
  at::Tensor want = at::empty_like(x);
  auto norm = [&](const RowKernelTable* table, const at::Tensor& y) {
    table->f32.rms_norm(x.data_ptr<float>(), w.data_ptr<float>(), 1e-5f, y.data_ptr<float>(),
                        nullptr, 4, 77);
  };
  norm(&kRowKernelsGeneric, want);
  for (const RowKernelTable* table : Tables()) {
    at::Tensor got = at::empty_like(x);
    norm(table, got);
    ExpectClose(got, want, 1e-6);
  }
}

}  // namespace
}  // namespace moesaic
