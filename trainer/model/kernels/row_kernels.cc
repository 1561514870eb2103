#include "trainer/model/kernels/row_kernels.h"

#include "parallel/simd/cpu_level.h"

namespace moesaic {

const RowKernelTable& ActiveRowKernels() {
  static const CpuLevel level = DetectCpuLevel();
  if (level >= CpuLevel::kAvx512Bf16) return kRowKernelsAvx512Bf16;
  if (level == CpuLevel::kAvx512) return kRowKernelsAvx512;
  return level == CpuLevel::kAvx2 ? kRowKernelsAvx2 : kRowKernelsGeneric;
}

}  // namespace moesaic
