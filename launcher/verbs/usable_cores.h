// Cores of this host that this process may use.
#pragma once

#include <cstdint>

namespace moesaic {

// At least 1.
uint32_t UsableCores();

}  // namespace moesaic
