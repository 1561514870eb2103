#include "parallel/simd/gemm_body.h"

namespace moesaic {

const GemmKernelTable kGemmKernelsAvx512Bf16 = MakeGemmKernelTable();

}  // namespace moesaic
