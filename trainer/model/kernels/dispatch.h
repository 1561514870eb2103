// What the kernels' ATen side shares: checks of operands, the choice of the compute type, and the
// split of rows over threads. For .cc files of this folder.
#pragma once

#include <ATen/ATen.h>

#include "parallel/expert/parallel_for.h"
#include "trainer/model/kernels/row_kernels.h"

namespace moesaic {

// body(T{}) with T = float or Bf16.
template <class Body>
void WithComputeType(const at::Tensor& tensor, Body body) {
  if (tensor.scalar_type() == at::kFloat) return body(float{});
  TORCH_CHECK(tensor.scalar_type() == at::kBFloat16, "float32 or bfloat16 is needed, got ",
              tensor.scalar_type());
  body(Bf16{});
}

template <class T>
T* Data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
// Null where the tensor is undefined.
template <class T>
T* DataOrNull(const at::Tensor& tensor) {
  return tensor.defined() ? Data<T>(tensor) : nullptr;
}

inline void CheckTensor(const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                        at::ScalarType type) {
  TORCH_CHECK(tensor.defined(), name, " is not defined");
  TORCH_CHECK(tensor.sizes() == shape, name, ": shape ", shape, " is needed, got ", tensor.sizes());
  TORCH_CHECK(tensor.scalar_type() == type, name, ": type ", type, " is needed, got ",
              tensor.scalar_type());
  TORCH_CHECK(tensor.is_contiguous() && tensor.is_cpu(), name,
              ": a contiguous tensor on the CPU is needed");
}
inline void CheckOptional(const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                          at::ScalarType type) {
  if (tensor.defined()) CheckTensor(name, tensor, shape, type);
}

// body(begin, end) over [0, rows), each range on one thread and worth at least some ten microseconds;
// `width`: elements a row.
template <class Body>
void ParallelRows(int64_t rows, int64_t width, Body body) {
  constexpr int64_t kElementsATask = 32768;
  ParallelFor(rows, std::max<int64_t>(1, kElementsATask / std::max<int64_t>(1, width)), body);
}

}  // namespace moesaic
