#include "launcher/verbs/usable_cores.h"

#include <sched.h>

#include <algorithm>

namespace moesaic {

uint32_t UsableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return static_cast<uint32_t>(std::max(1, CPU_COUNT(&set)));
}

}  // namespace moesaic
