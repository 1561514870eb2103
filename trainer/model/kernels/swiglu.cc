#include "trainer/model/kernels/dispatch.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {

void SwiGlu(const at::Tensor& gate_up, at::Tensor& activation) {
  TORCH_CHECK(activation.dim() == 2, "SwiGlu: activation: two dimensions are needed, got ",
              activation.sizes());
  const int64_t n = activation.size(0), w = activation.size(1);
  CheckTensor("SwiGlu: gate_up", gate_up, {n, 2 * w}, activation.scalar_type());
  CheckTensor("SwiGlu: activation", activation, {n, w}, activation.scalar_type());
  WithComputeType(activation, [&](auto type) {
    using T = decltype(type);
    ParallelRows(n, w, [&](int64_t begin, int64_t end) {
      ActiveRowKernelsOf<T>().swiglu(Data<T>(gate_up) + begin * 2 * w,
                                     Data<T>(activation) + begin * w, end - begin, w);
    });
  });
}

void SwiGluBackward(const at::Tensor& dactivation, const at::Tensor& gate_up, at::Tensor& dgate_up) {
  TORCH_CHECK(dactivation.dim() == 2, "SwiGluBackward: dactivation: two dimensions are needed, got ",
              dactivation.sizes());
  const int64_t n = dactivation.size(0), w = dactivation.size(1);
  CheckTensor("SwiGluBackward: dactivation", dactivation, {n, w}, dactivation.scalar_type());
  CheckTensor("SwiGluBackward: gate_up", gate_up, {n, 2 * w}, dactivation.scalar_type());
  CheckTensor("SwiGluBackward: dgate_up", dgate_up, {n, 2 * w}, dactivation.scalar_type());
  WithComputeType(dactivation, [&](auto type) {
    using T = decltype(type);
    ParallelRows(n, w, [&](int64_t begin, int64_t end) {
      ActiveRowKernelsOf<T>().swiglu_backward(
          Data<T>(dactivation) + begin * w, Data<T>(gate_up) + begin * 2 * w,
          Data<T>(dgate_up) + begin * 2 * w, end - begin, w);
    });
  });
}

}  // namespace moesaic
