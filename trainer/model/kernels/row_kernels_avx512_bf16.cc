#include "trainer/model/kernels/row_kernels_body.h"

namespace moesaic {

const RowKernelTable kRowKernelsAvx512Bf16 = MakeRowKernelTable();

}  // namespace moesaic
