#include "trainer/model/kernels/row_kernels_body.h"

namespace moesaic {

const RowKernelTable kRowKernelsAvx2 = MakeRowKernelTable();

}  // namespace moesaic
