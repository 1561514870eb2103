#include "parallel/simd/gemm.h"

#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "parallel/simd/cpu_level.h"
#include "parallel/simd/gemm_kernels.h"

namespace moesaic {
namespace {

float Widen(float x) { return x; }
float Widen(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof(f));
  return f;
}

// Small integers over 8: exact in bf16.
template <class T>
std::vector<T> Random(int64_t n, std::mt19937& random) {
  std::uniform_int_distribution<int> values(-64, 64);
  std::vector<T> result(n);
  for (T& x : result) {
    const float f = values(random) / 8.0f;
    if constexpr (sizeof(T) == 4) {
      x = f;
    } else {
      uint32_t bits;
      std::memcpy(&bits, &f, sizeof(bits));
      x.bits = static_cast<uint16_t>(bits >> 16);
    }
  }
  return result;
}

struct Level {
  CpuLevel needs;
  const GemmKernelTable* table;
};

std::vector<Level> Levels() {
  std::vector<Level> levels;
  for (Level level : {Level{CpuLevel::kGeneric, &kGemmKernelsGeneric},
                      Level{CpuLevel::kAvx2, &kGemmKernelsAvx2},
                      Level{CpuLevel::kAvx512, &kGemmKernelsAvx512},
                      Level{CpuLevel::kAvx512Bf16, &kGemmKernelsAvx512Bf16}}) {
    if (DetectCpuLevel() >= level.needs) levels.push_back(level);
  }
  return levels;
}

template <class T>
const GemmKernels<T>& KernelsOf(const GemmKernelTable& table) {
  if constexpr (sizeof(T) == 4) {
    return table.f32;
  } else {
    return table.bf16;
  }
}

char* Aligned(std::vector<char>& memory, int64_t bytes) {
  memory.resize(bytes + 64);
  const auto at = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (64 - at % 64) % 64;
}

// Sums of these products are exact in fp32, so every level must give the very value.
template <class T>
void ExpectExact(const GemmKernelTable& table, const GemmShape& s, bool a_transposed,
                 bool b_transposed) {
  SCOPED_TRACE(testing::Message() << s.m << "x" << s.n << "x" << s.k << " " << a_transposed
                                  << b_transposed << " bytes " << sizeof(T));
  std::mt19937 random(1);
  const std::vector<T> a = Random<T>(s.m * s.k, random), b = Random<T>(s.k * s.n, random);
  const MatrixRef<T> ra =
      a_transposed ? MatrixRef<T>{a.data(), 1, s.m} : MatrixRef<T>{a.data(), s.k, 1};
  const MatrixRef<T> rb =
      b_transposed ? MatrixRef<T>{b.data(), 1, s.k} : MatrixRef<T>{b.data(), s.n, 1};
  const int64_t stride = s.n + 3;
  std::vector<float> c(s.m * stride, 0.5f);
  const GemmKernels<T>& kernels = KernelsOf<T>(table);
  std::vector<char> memory_b, memory_a;
  char* packed = Aligned(memory_b, kernels.packed_bytes(s.k, s.n));
  kernels.pack_b(s.k, s.n, rb, packed);
  kernels.multiply(s, ra, {packed, s.k, s.n}, Aligned(memory_a, kernels.scratch_bytes(s, ra)),
                   {c.data(), stride, true});
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < stride; ++j) {
      double want = 0.5;
      for (int64_t l = 0; l < s.k && j < s.n; ++l) {
        want += static_cast<double>(Widen(ra.data[i * ra.row_stride + l * ra.column_stride])) *
                Widen(rb.data[l * rb.row_stride + j * rb.column_stride]);
      }
      ASSERT_EQ(c[i * stride + j], want) << i << "," << j;
    }
  }
}

TEST(Gemm, EveryLevelIsExactOnEveryLayoutAndTail) {
  for (const Level& level : Levels()) {
    SCOPED_TRACE(CpuLevelName(level.needs));
    for (GemmShape s : std::vector<GemmShape>{{1, 1, 1}, {2, 3, 4}, {13, 17, 5}, {14, 32, 16},
                                              {15, 33, 17}, {29, 48, 31}, {30, 49, 33},
                                              {43, 100, 64}, {5, 31, 0}, {70, 16, 75},
                                              {31, 33, 1100}, {230, 20, 515}}) {
      for (int layout = 0; layout < 4; ++layout) {
        ExpectExact<float>(*level.table, s, layout & 1, layout & 2);
        ExpectExact<Bf16>(*level.table, s, layout & 1, layout & 2);
      }
    }
  }
}

TEST(Gemm, NarrowResultIsTheRoundedOne) {
  std::mt19937 random(2);
  const GemmShape s{19, 45, 37};
  const auto a = Random<Bf16>(s.m * s.k, random), b = Random<Bf16>(s.k * s.n, random);
  const MatrixRef<Bf16> ra{a.data(), s.k, 1}, rb{b.data(), s.n, 1};
  std::vector<float> wide(s.m * s.n);
  std::vector<Bf16> narrow(s.m * s.n);
  Gemm(s, ra, rb, GemmResult<float>{wide.data(), s.n, false});
  Gemm(s, ra, rb, GemmResult<Bf16>{narrow.data(), s.n, false});
  for (size_t i = 0; i < wide.size(); ++i) {
    EXPECT_NEAR(Widen(narrow[i]), wide[i], std::abs(wide[i]) / 256);
  }
}

template <class T>
void ExpectPartsOfPackedB() {
  std::mt19937 random(3);
  const int64_t k = 51, n = 90, m = 20;
  const auto a = Random<T>(m * (k + 1), random), b = Random<T>(k * n, random);
  std::vector<char> memory;
  PackedB packed = PackB<T>(k, n, {b.data(), n, 1}, Aligned(memory, PackedBytes<T>(k, n)));
  for (auto [k_begin, k_end, n_begin, n_end] :
       {std::array<int64_t, 4>{0, k, 0, n}, {0, 30, 0, 64}, {8, 20, 32, 64}, {34, 51, 64, 90}}) {
    packed.k_begin = k_begin;
    packed.n_begin = n_begin;
    const GemmShape shape{m, n_end - n_begin, k_end - k_begin};
    std::vector<float> got(shape.m * shape.n), want(shape.m * shape.n);
    const MatrixRef<T> part{a.data() + k_begin, k + 1, 1};
    GemmPacked<T, float>(shape, part, packed, {got.data(), shape.n, false});
    Gemm(shape, part, {b.data() + k_begin * n + n_begin, n, 1},
         GemmResult<float>{want.data(), shape.n});
    EXPECT_EQ(got, want) << k_begin << " " << n_begin;
  }
}

TEST(Gemm, PartsOfAPackedB) {
  ExpectPartsOfPackedB<float>();
  ExpectPartsOfPackedB<Bf16>();
}

TEST(CpuLevel, IsNamed) { EXPECT_STRNE(CpuLevelName(DetectCpuLevel()), "?"); }

}  // namespace
}  // namespace moesaic
