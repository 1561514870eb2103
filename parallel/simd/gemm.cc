#include "parallel/simd/gemm.h"

#include <cstdlib>
#include <memory>
#include <new>

#include "parallel/simd/cpu_level.h"
#include "parallel/simd/gemm_kernels.h"

namespace moesaic {
namespace {

constexpr int64_t kAlignment = 64;

template <class T>
const GemmKernels<T>& Kernels();
template <>
const GemmKernels<float>& Kernels<float>() {
  return ActiveGemmKernels().f32;
}
template <>
const GemmKernels<Bf16>& Kernels<Bf16>() {
  return ActiveGemmKernels().bf16;
}

// Memory that grows and is kept: products of a step have the same few sizes again and again.
class Scratch {
 public:
  char* Reserve(int64_t bytes) {
    if (bytes > size_) {
      size_ = (bytes + bytes / 2 + kAlignment - 1) / kAlignment * kAlignment;
      data_.reset(static_cast<char*>(std::aligned_alloc(kAlignment, size_)));
      if (data_ == nullptr) throw std::bad_alloc();
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data_;
  int64_t size_ = 0;
};

Scratch& ScratchForA() {
  thread_local Scratch scratch;
  return scratch;
}
Scratch& ScratchForB() {
  thread_local Scratch scratch;
  return scratch;
}

void Multiply(const GemmShape& shape, MatrixRef<float> a, const PackedB& b, void* scratch,
              GemmResult<float> c) {
  Kernels<float>().multiply(shape, a, b, scratch, c);
}
void Multiply(const GemmShape& shape, MatrixRef<Bf16> a, const PackedB& b, void* scratch,
              GemmResult<float> c) {
  Kernels<Bf16>().multiply(shape, a, b, scratch, c);
}
void Multiply(const GemmShape& shape, MatrixRef<Bf16> a, const PackedB& b, void* scratch,
              GemmResult<Bf16> c) {
  Kernels<Bf16>().multiply_narrow(shape, a, b, scratch, c);
}

template <class T, class C>
void PackAndMultiply(const GemmShape& shape, MatrixRef<T> a, MatrixRef<T> b, GemmResult<C> c) {
  char* packed = ScratchForB().Reserve(PackedBytes<T>(shape.k, shape.n));
  GemmPacked<T, C>(shape, a, PackB<T>(shape.k, shape.n, b, packed), c);
}

}  // namespace

const GemmKernelTable& ActiveGemmKernels() {
  static const CpuLevel level = DetectCpuLevel();
  if (level >= CpuLevel::kAvx512Bf16) return kGemmKernelsAvx512Bf16;
  if (level == CpuLevel::kAvx512) return kGemmKernelsAvx512;
  return level == CpuLevel::kAvx2 ? kGemmKernelsAvx2 : kGemmKernelsGeneric;
}

template <class T>
int64_t PackedBytes(int64_t k, int64_t n) {
  return Kernels<T>().packed_bytes(k, n);
}

template <class T>
PackedB PackB(int64_t k, int64_t n, MatrixRef<T> b, void* packed) {
  Kernels<T>().pack_b(k, n, b, packed);
  return {packed, k, n};
}

template <class T, class C>
void GemmPacked(const GemmShape& shape, MatrixRef<T> a, const PackedB& b, GemmResult<C> c) {
  const int64_t bytes = Kernels<T>().scratch_bytes(shape, a);
  Multiply(shape, a, b, bytes > 0 ? ScratchForA().Reserve(bytes) : nullptr, c);
}

void Gemm(const GemmShape& shape, MatrixRef<float> a, MatrixRef<float> b, GemmResult<float> c) {
  PackAndMultiply(shape, a, b, c);
}
void Gemm(const GemmShape& shape, MatrixRef<Bf16> a, MatrixRef<Bf16> b, GemmResult<float> c) {
  PackAndMultiply(shape, a, b, c);
}
void Gemm(const GemmShape& shape, MatrixRef<Bf16> a, MatrixRef<Bf16> b, GemmResult<Bf16> c) {
  PackAndMultiply(shape, a, b, c);
}

template int64_t PackedBytes<float>(int64_t, int64_t);
template int64_t PackedBytes<Bf16>(int64_t, int64_t);
template PackedB PackB<float>(int64_t, int64_t, MatrixRef<float>, void*);
template PackedB PackB<Bf16>(int64_t, int64_t, MatrixRef<Bf16>, void*);
template void GemmPacked<float, float>(const GemmShape&, MatrixRef<float>, const PackedB&,
                                      GemmResult<float>);
template void GemmPacked<Bf16, float>(const GemmShape&, MatrixRef<Bf16>, const PackedB&,
                                      GemmResult<float>);
template void GemmPacked<Bf16, Bf16>(const GemmShape&, MatrixRef<Bf16>, const PackedB&,
                                      GemmResult<Bf16>);

}  // namespace moesaic
