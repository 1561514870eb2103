#include "launcher/build_info.h"

namespace moesaic {

const BuildInfo& ThisBuild() {
  static const BuildInfo& info =
      *new BuildInfo{MOESAIC_VERSION, MOESAIC_COMMIT, MOESAIC_COMPILER, MOESAIC_BUILD_TYPE};
  return info;
}

}  // namespace moesaic
