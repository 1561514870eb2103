#include "parallel/comm/communicator.h"

namespace moesaic {

int64_t ElementSize(ElementType type) {
  switch (type) {
    case ElementType::kFloat64:
    case ElementType::kInt64:
      return 8;
    case ElementType::kFloat32:
    case ElementType::kInt32:
      return 4;
    case ElementType::kBFloat16:
      return 2;
    case ElementType::kByte:
      return 1;
  }
  return 0;
}

}  // namespace moesaic
