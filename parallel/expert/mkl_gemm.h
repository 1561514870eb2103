// Products of bf16 matrices by the MKL inside LibTorch, which drives the CPU's tiles (AMX) and
// takes any shape without compiling a kernel for it. On CPUs without tiles it is slower than Gemm.
#pragma once

#include "parallel/simd/gemm.h"

namespace moesaic {

// As Gemm (parallel/simd/gemm.h). Thread-safe; runs on the calling thread inside a ParallelFor
// body.
void MklGemm(const GemmShape& shape, MatrixRef<Bf16> a, MatrixRef<Bf16> b, GemmResult<float> c);
void MklGemm(const GemmShape& shape, MatrixRef<Bf16> a, MatrixRef<Bf16> b, GemmResult<Bf16> c);

}  // namespace moesaic
