// Sixteen fp32 lanes, written once and compiled for several instruction sets: include it only from
// files that are (row_kernels_*.cc). Everything has internal linkage, so that code compiled for a
// newer CPU can never be chosen by the linker for an older one. No ATen and no standard templates
// here for the same reason.
//
// Arithmetic is exact to the bit whatever the lane: files are compiled with -ffp-contract=off, a
// fused multiply-add is written where it is meant, and tails run the same operations under a mask.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "parallel/simd/bf16.h"

namespace moesaic {
namespace {

constexpr int64_t kLanes = 16;

typedef float VecF __attribute__((vector_size(64)));
typedef int32_t VecI __attribute__((vector_size(64)));
typedef uint32_t VecU __attribute__((vector_size(64)));
typedef uint16_t VecH __attribute__((vector_size(32)));

#define MOESAIC_INLINE inline __attribute__((always_inline))

MOESAIC_INLINE VecF Splat(float value) { return VecF{} + value; }
MOESAIC_INLINE VecU Bits(VecF v) { return (VecU)v; }
MOESAIC_INLINE VecF FromBits(VecU v) { return (VecF)v; }

// How many lanes of a vector stand for elements: all of them, or the `count` first.
struct AllLanes {};
struct FirstLanes {
  int64_t count;
};

// body(offset, lanes) over [0, n).
template <class Body>
MOESAIC_INLINE void ForEachVector(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, AllLanes{});
  if (i < n) body(i, FirstLanes{n - i});
}

MOESAIC_INLINE VecF WidenBf16(VecH half) {
  return FromBits(__builtin_convertvector(half, VecU) << 16);
}

// To nearest, ties to even; NaN stays NaN. Where the CPU has an instruction for it, numbers below
// 2^-126 become 0.
MOESAIC_INLINE VecH NarrowToBf16(VecF v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  VecH h;
  memcpy(&h, &half, sizeof(h));
  return h;
#else
  const VecU bits = Bits(v);
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU chosen = (v == v) ? rounded : (VecU{} + 0x7fc0u);
  return __builtin_convertvector(chosen, VecH);
#endif
}

MOESAIC_INLINE VecF Load(const float* p, AllLanes) {
  VecF v;
  memcpy(&v, p, sizeof(v));
  return v;
}
MOESAIC_INLINE void Store(float* p, VecF v, AllLanes) { memcpy(p, &v, sizeof(v)); }
MOESAIC_INLINE VecF Load(const Bf16* p, AllLanes) {
  VecH v;
  memcpy(&v, p, sizeof(v));
  return WidenBf16(v);
}
MOESAIC_INLINE void Store(Bf16* p, VecF v, AllLanes) {
  const VecH half = NarrowToBf16(v);
  memcpy(p, &half, sizeof(half));
}

// Lanes beyond the count read as 0.
MOESAIC_INLINE VecF Load(const float* p, FirstLanes lanes) {
#if defined(__AVX512F__)
  return (VecF)_mm512_maskz_loadu_ps((__mmask16)((1u << lanes.count) - 1), p);
#else
  VecF v{};
  memcpy(&v, p, lanes.count * sizeof(*p));
  return v;
#endif
}
MOESAIC_INLINE void Store(float* p, VecF v, FirstLanes lanes) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << lanes.count) - 1), (__m512)v);
#else
  memcpy(p, &v, lanes.count * sizeof(*p));
#endif
}
MOESAIC_INLINE VecH LoadHalves(const Bf16* p, FirstLanes lanes) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return (VecH)_mm256_maskz_loadu_epi16((__mmask16)((1u << lanes.count) - 1), p);
#else
  VecH v{};
  memcpy(&v, p, lanes.count * sizeof(*p));
  return v;
#endif
}
MOESAIC_INLINE VecF Load(const Bf16* p, FirstLanes lanes) {
  return WidenBf16(LoadHalves(p, lanes));
}
MOESAIC_INLINE void Store(Bf16* p, VecF v, FirstLanes lanes) {
  const VecH half = NarrowToBf16(v);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << lanes.count) - 1), (__m256i)half);
#else
  memcpy(p, &half, lanes.count * sizeof(*p));
#endif
}

// a b + c, rounded once where the CPU can (always the same on one CPU level).
MOESAIC_INLINE VecF MulAdd(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
  return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  __m256 x[2], y[2], z[2];
  memcpy(x, &a, sizeof(a));
  memcpy(y, &b, sizeof(b));
  memcpy(z, &c, sizeof(c));
  for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  memcpy(&c, z, sizeof(c));
  return c;
#else
  return a * b + c;
#endif
}

MOESAIC_INLINE VecF SquareRoot(VecF v) {
#if defined(__AVX512F__)
  return (VecF)_mm512_maskz_sqrt_ps((__mmask16)0xffff, (__m512)v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

MOESAIC_INLINE VecF Max(VecF a, VecF b) { return a > b ? a : b; }
MOESAIC_INLINE VecF Min(VecF a, VecF b) { return a < b ? a : b; }

// Lanes beyond the count are replaced by `value`.
MOESAIC_INLINE VecF Keep(VecF v, float, AllLanes) { return v; }
MOESAIC_INLINE VecF Keep(VecF v, float value, FirstLanes lanes) {
  const VecI index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return index < (VecI{} + (int32_t)lanes.count) ? v : Splat(value);
}

// Lanes in a fixed tree: halves, quarters, eighths, neighbours.
MOESAIC_INLINE VecF SwapHalves(VecF v) {
  return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}
MOESAIC_INLINE VecF SwapQuarters(VecF v) {
  return __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
}
MOESAIC_INLINE VecF SwapEighths(VecF v) {
  return __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
}
MOESAIC_INLINE VecF SwapNeighbours(VecF v) {
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}
MOESAIC_INLINE float SumLanes(VecF v) {
  v += SwapHalves(v);
  v += SwapQuarters(v);
  v += SwapEighths(v);
  v += SwapNeighbours(v);
  return v[0];
}
MOESAIC_INLINE float MaxLanes(VecF v) {
  v = Max(v, SwapHalves(v));
  v = Max(v, SwapQuarters(v));
  v = Max(v, SwapEighths(v));
  v = Max(v, SwapNeighbours(v));
  return v[0];
}

// e^x within 2 units of the last place for normal results; 0 below -87.3 (and for -inf), infinity
// above 88.7, NaN for NaN. Cody-Waite reduction and the polynomial of Cephes' expf.
MOESAIC_INLINE VecF Exp(VecF x) {
  constexpr float kLow = -87.336544f;
  constexpr float kHigh = 88.722839f;
  const VecF clamped = Min(Max(x, Splat(kLow)), Splat(kHigh));
  const VecF shifter = Splat(12582912.0f);  // 1.5 * 2^23: the sum rounds to an integer
  const VecF shifted = MulAdd(clamped, Splat(1.44269504f), shifter);
  const VecF n = shifted - shifter;
  VecF r = MulAdd(n, Splat(-0.693359375f), clamped);
  r = MulAdd(n, Splat(2.12194440e-4f), r);
  VecF p = Splat(1.9875691500e-4f);
  p = MulAdd(p, r, Splat(1.3981999507e-3f));
  p = MulAdd(p, r, Splat(8.3334519073e-3f));
  p = MulAdd(p, r, Splat(4.1665795894e-2f));
  p = MulAdd(p, r, Splat(1.6666665459e-1f));
  p = MulAdd(p, r, Splat(5.0000001201e-1f));
  p = MulAdd(p, r * r, r) + 1.0f;
  // Two factors, as n may be 128.
  const VecI exponent = (VecI)Bits(shifted) - (VecI)Bits(shifter);
  const VecI half = exponent >> 1;
  const VecF scale_a = FromBits((VecU)((half + 127) << 23));
  const VecF scale_b = FromBits((VecU)((exponent - half + 127) << 23));
  VecF y = p * scale_a * scale_b;
  y = x < kLow ? VecF{} : y;
  y = x > kHigh ? Splat(__builtin_inff()) : y;
  return x == x ? y : x;
}

}  // namespace
}  // namespace moesaic
