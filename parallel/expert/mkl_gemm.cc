#include "parallel/expert/mkl_gemm.h"

#include <ATen/ATen.h>

// LibTorch's MKL, with 32-bit integers; its header does not come with LibTorch.
extern "C" void cblas_gemm_bf16bf16f32(int layout, int trans_a, int trans_b, int m, int n, int k,
                                       float alpha, const uint16_t* a, int lda, const uint16_t* b,
                                       int ldb, float beta, float* c, int ldc);

namespace moesaic {
namespace {

constexpr int kRowMajor = 101;
constexpr int kNoTranspose = 111;
constexpr int kTranspose = 112;

struct CblasOperand {
  int transpose;
  int leading;
};

CblasOperand OperandOf(const MatrixRef<Bf16>& m) {
  if (m.column_stride == 1) return {kNoTranspose, static_cast<int>(m.row_stride)};
  return {kTranspose, static_cast<int>(m.column_stride)};
}

}  // namespace

void MklGemm(const GemmShape& shape, MatrixRef<Bf16> a, MatrixRef<Bf16> b, GemmResult<float> c) {
  TORCH_CHECK(std::max({shape.m, shape.n, shape.k, c.stride}) <= INT32_MAX,
              "MklGemm: sizes beyond 31 bits: ", shape.m, " x ", shape.n, " x ", shape.k);
  const CblasOperand of_a = OperandOf(a), of_b = OperandOf(b);
  cblas_gemm_bf16bf16f32(kRowMajor, of_a.transpose, of_b.transpose, static_cast<int>(shape.m),
                         static_cast<int>(shape.n), static_cast<int>(shape.k), 1.0f, &a.data->bits,
                         of_a.leading, &b.data->bits, of_b.leading, c.accumulate ? 1.0f : 0.0f,
                         c.data, static_cast<int>(c.stride));
}

void MklGemm(const GemmShape& shape, MatrixRef<Bf16> a, MatrixRef<Bf16> b, GemmResult<Bf16> c) {
  at::Tensor wide = at::empty({shape.m, shape.n});
  MklGemm(shape, a, b, GemmResult<float>{wide.data_ptr<float>(), shape.n});
  at::from_blob(c.data, {shape.m, shape.n}, {c.stride, 1}, at::kBFloat16).copy_(wide);
}

}  // namespace moesaic
