// The table behind gemm.h: one a CPU level, each from gemm_body.h.
#pragma once

#include "parallel/simd/gemm.h"

namespace moesaic {

// T: float or Bf16.
template <class T>
struct GemmKernels {
  int64_t (*packed_bytes)(int64_t k, int64_t n);
  void (*pack_b)(int64_t k, int64_t n, MatrixRef<T> b, void* packed);
  // Room that `multiply` needs for A; 0 where it reads A in place.
  int64_t (*scratch_bytes)(const GemmShape& shape, MatrixRef<T> a);
  void (*multiply)(const GemmShape& shape, MatrixRef<T> a, const PackedB& b, void* scratch,
                   GemmResult<float> c);
  void (*multiply_narrow)(const GemmShape& shape, MatrixRef<T> a, const PackedB& b, void* scratch,
                          GemmResult<Bf16> c);
};

struct GemmKernelTable {
  GemmKernels<float> f32;
  GemmKernels<Bf16> bf16;
};

// The table of this CPU.
const GemmKernelTable& ActiveGemmKernels();

extern const GemmKernelTable kGemmKernelsGeneric;
extern const GemmKernelTable kGemmKernelsAvx2;
extern const GemmKernelTable kGemmKernelsAvx512;
extern const GemmKernelTable kGemmKernelsAvx512Bf16;

}  // namespace moesaic
