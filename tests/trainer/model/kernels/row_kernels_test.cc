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

TEST(RowKernels, LevelsAgree) {
  at::manual_seed(14);
  at::Tensor x = at::randn({4, 77}), w = at::randn({77});
  at::Tensor want = at::empty_like(x);
  auto norm = [&](const RowKernelTable* table, const at::Tensor& y) {
    table->f32.rms_norm(x.data_ptr<float>(), w.data_ptr<float>(), 1e-5f, y.data_ptr<float>(), nullptr,
                        4, 77);
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
