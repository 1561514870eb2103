#include "parallel/simd/gemm_body.h"

namespace moesaic {

const GemmKernelTable kGemmKernelsAvx512 = MakeGemmKernelTable();

}  // namespace moesaic
