#include "parallel/simd/gemm_body.h"

namespace moesaic {

const GemmKernelTable kGemmKernelsGeneric = MakeGemmKernelTable();

}  // namespace moesaic
