// The bits of a bfloat16, without ATen: what the kernels compiled for several CPUs read and write.
#pragma once

#include <stdint.h>

namespace moesaic {

struct Bf16 {
  uint16_t bits;
};
static_assert(sizeof(Bf16) == 2);

}  // namespace moesaic
