// What this binary was built from.
#pragma once

#include <string>

namespace moesaic {

struct BuildInfo {
  std::string version;   // 0.1.0
  std::string commit;    // at the time CMake was configured; "unknown" outside a git checkout
  std::string compiler;
  std::string build_type;
};

const BuildInfo& ThisBuild();

}  // namespace moesaic
