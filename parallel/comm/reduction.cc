#include "parallel/comm/reduction.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

namespace moesaic {
namespace {

struct BFloat16 {
  uint16_t bits = 0;
};

float Widen(BFloat16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

BFloat16 Round(float value) {
  if (std::isnan(value)) return {0x7fc0};
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <typename T>
T Widen(T value) {
  return value;
}

struct Sum {
  template <typename T>
  static T Of(T a, T b) {
    return a + b;
  }
};

struct Max {
  static double Of(double a, double b) { return std::isnan(a) || a > b ? a : b; }
  static int64_t Of(int64_t a, int64_t b) { return std::max(a, b); }
};

// T: as stored. A: as accumulated.
template <typename Op, typename T, typename A>
void Reduce(std::span<const void* const> in, int64_t count, void* out) {
  constexpr int64_t kBlock = 2048;  // stays in the first-level cache
  A sums[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    const T* first = static_cast<const T*>(in[0]) + begin;
    for (int64_t i = 0; i < n; ++i) sums[i] = Widen(first[i]);
    for (size_t r = 1; r < in.size(); ++r) {
      const T* next = static_cast<const T*>(in[r]) + begin;
      for (int64_t i = 0; i < n; ++i) sums[i] = Op::Of(sums[i], static_cast<A>(Widen(next[i])));
    }
    T* to = static_cast<T*>(out) + begin;
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<T, BFloat16>) {
        to[i] = Round(sums[i]);
      } else {
        to[i] = sums[i];
      }
    }
  }
}

}  // namespace

bool CanReduce(Reduction reduction, ElementType type) {
  if (reduction == Reduction::kSum) return type != ElementType::kByte;
  return type == ElementType::kFloat64 || type == ElementType::kInt64;
}

void ReduceInOrder(Reduction reduction, ElementType type, std::span<const void* const> in,
                   int64_t count, void* out) {
  const bool sum = reduction == Reduction::kSum;
  switch (type) {
    case ElementType::kFloat32:
      return Reduce<Sum, float, float>(in, count, out);
    case ElementType::kBFloat16:
      return Reduce<Sum, BFloat16, float>(in, count, out);
    case ElementType::kInt32:
      return Reduce<Sum, int32_t, int32_t>(in, count, out);
    case ElementType::kFloat64:
      return sum ? Reduce<Sum, double, double>(in, count, out)
                 : Reduce<Max, double, double>(in, count, out);
    case ElementType::kInt64:
      return sum ? Reduce<Sum, int64_t, int64_t>(in, count, out)
                 : Reduce<Max, int64_t, int64_t>(in, count, out);
    case ElementType::kByte:
      return;
  }
}

ReductionShare ShareOf(int64_t count, int rank, int size) {
  return {count / size * rank + std::min<int64_t>(rank, count % size),
          count / size * (rank + 1) + std::min<int64_t>(rank + 1, count % size)};
}

}  // namespace moesaic
