#include "parallel/simd/gemm_body.h"

namespace moesaic {

const GemmKernelTable kGemmKernelsAvx2 = MakeGemmKernelTable();

}  // namespace moesaic
