// Products of matrices on raw memory, by kernels of our own: any shape runs at full speed from its
// first call, nothing is compiled or tuned at run time, and a result depends on the operands alone:
// not on alignment, on neighbours or on the number of threads that share the rows.
//
// Types: A and B float or Bf16, accumulated in fp32 over k in ascending order (Bf16: in pairs where
// the CPU multiplies pairs). Thread-safe; each call runs on the calling thread and keeps a scratch
// buffer for that thread.
#pragma once

#include <stdint.h>

#include "parallel/simd/bf16.h"

namespace moesaic {

// Element (i, j) is data[i * row_stride + j * column_stride]; one of the strides is 1.
template <class T>
struct MatrixRef {
  const T* data = nullptr;
  int64_t row_stride = 0;
  int64_t column_stride = 1;

  MatrixRef Transposed() const { return {data, column_stride, row_stride}; }
};

struct GemmShape {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
};

// C: row-major, `stride` elements a row. `accumulate`: added to what is there (fp32 only).
template <class C>
struct GemmResult {
  C* data = nullptr;
  int64_t stride = 0;
  bool accumulate = false;
};

// c [m, n] (+)= a [m, k] b [k, n]. k may be 0.
void Gemm(const GemmShape& shape, MatrixRef<float> a, MatrixRef<float> b, GemmResult<float> c);
void Gemm(const GemmShape& shape, MatrixRef<Bf16> a, MatrixRef<Bf16> b, GemmResult<float> c);
void Gemm(const GemmShape& shape, MatrixRef<Bf16> a, MatrixRef<Bf16> b, GemmResult<Bf16> c);

// B packed once and used several times, whole or in part. Columns lie in panels of kPanel.
inline constexpr int64_t kPanel = 32;

// Rows [k_begin, k_begin + shape.k) and columns [n_begin, n_begin + shape.n) of a packed B.
struct PackedB {
  const void* data = nullptr;
  int64_t k = 0;        // as it was packed
  int64_t n = 0;        // as it was packed
  int64_t k_begin = 0;  // even
  int64_t n_begin = 0;  // a multiple of kPanel
};

// Room for a packed B.
template <class T>
int64_t PackedBytes(int64_t k, int64_t n);
// `packed` is aligned to 64 bytes.
template <class T>
PackedB PackB(int64_t k, int64_t n, MatrixRef<T> b, void* packed);
// As Gemm. The columns end at b.n or at a multiple of kPanel. Bf16: where the rows end at an odd
// b.k, shape.k may be one more (A's last column then meets zeros).
template <class T, class C>
void GemmPacked(const GemmShape& shape, MatrixRef<T> a, const PackedB& b, GemmResult<C> c);

}  // namespace moesaic
