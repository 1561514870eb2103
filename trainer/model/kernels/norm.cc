#include "trainer/model/kernels/dispatch.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {

void RmsNorm(const at::Tensor& x, const at::Tensor& w, double epsilon, at::Tensor& y,
             at::Tensor inverse_rms) {
  TORCH_CHECK(x.dim() == 2, "RmsNorm: x: two dimensions are needed, got ", x.sizes());
  const int64_t n = x.size(0), d = x.size(1);
  CheckTensor("RmsNorm: x", x, {n, d}, x.scalar_type());
  CheckTensor("RmsNorm: w", w, {d}, at::kFloat);
  CheckTensor("RmsNorm: y", y, {n, d}, x.scalar_type());
  CheckOptional("RmsNorm: inverse_rms", inverse_rms, {n}, at::kFloat);
  WithComputeType(x, [&](auto type) {
    using T = decltype(type);
    ParallelRows(n, d, [&](int64_t begin, int64_t end) {
      float* r = DataOrNull<float>(inverse_rms);
      ActiveRowKernelsOf<T>().rms_norm(Data<T>(x) + begin * d, Data<float>(w), epsilon,
                                       Data<T>(y) + begin * d, r ? r + begin : nullptr, end - begin, d);
    });
  });
}

void RmsNormBackwardInput(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w,
                          const at::Tensor& inverse_rms, const at::Tensor& residual, at::Tensor& dx) {
  TORCH_CHECK(x.dim() == 2, "RmsNormBackwardInput: x: two dimensions are needed, got ", x.sizes());
  const int64_t n = x.size(0), d = x.size(1);
  CheckTensor("RmsNormBackwardInput: dy", dy, {n, d}, x.scalar_type());
  CheckTensor("RmsNormBackwardInput: x", x, {n, d}, x.scalar_type());
  CheckTensor("RmsNormBackwardInput: w", w, {d}, at::kFloat);
  CheckTensor("RmsNormBackwardInput: inverse_rms", inverse_rms, {n}, at::kFloat);
  CheckOptional("RmsNormBackwardInput: residual", residual, {n, d}, x.scalar_type());
  CheckTensor("RmsNormBackwardInput: dx", dx, {n, d}, x.scalar_type());
  WithComputeType(x, [&](auto type) {
    using T = decltype(type);
    ParallelRows(n, d, [&](int64_t begin, int64_t end) {
      const T* more = DataOrNull<T>(residual);
      ActiveRowKernelsOf<T>().rms_norm_backward_input(
          Data<T>(dy) + begin * d, Data<T>(x) + begin * d, Data<float>(w),
          Data<float>(inverse_rms) + begin, more ? more + begin * d : nullptr,
          Data<T>(dx) + begin * d, end - begin, d);
    });
  });
}

void RmsNormBackwardWeight(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& inverse_rms,
                           bool accumulate, at::Tensor& dw) {
  TORCH_CHECK(x.dim() == 2, "RmsNormBackwardWeight: x: two dimensions are needed, got ", x.sizes());
  const int64_t n = x.size(0), d = x.size(1);
  CheckTensor("RmsNormBackwardWeight: dy", dy, {n, d}, x.scalar_type());
  CheckTensor("RmsNormBackwardWeight: x", x, {n, d}, x.scalar_type());
  CheckTensor("RmsNormBackwardWeight: inverse_rms", inverse_rms, {n}, at::kFloat);
  CheckTensor("RmsNormBackwardWeight: dw", dw, {d}, at::kFloat);
  if (!accumulate) dw.zero_();
  WithComputeType(x, [&](auto type) {
    using T = decltype(type);
    // Columns over threads: the sum over rows is then the same at any number of threads.
    ParallelRows(d, n, [&](int64_t begin, int64_t end) {
      ActiveRowKernelsOf<T>().rms_norm_backward_weight(
          Data<T>(dy) + begin, Data<T>(x) + begin, Data<float>(inverse_rms),
          Data<float>(dw) + begin, n, d, end - begin);
    });
  });
}

}  // namespace moesaic
