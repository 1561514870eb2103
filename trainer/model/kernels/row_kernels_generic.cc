#include "trainer/model/kernels/row_kernels_body.h"

namespace moesaic {

const RowKernelTable kRowKernelsGeneric = MakeRowKernelTable();

}  // namespace moesaic
