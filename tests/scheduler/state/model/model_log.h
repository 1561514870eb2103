// ClusterModel::Log, for its own files.
#pragma once

#include <fmt/format.h>

#include "tests/scheduler/state/model/cluster_model.h"

namespace moesaic {

template <typename... Args>
void ClusterModel::Log(const char* format, const Args&... args) {
  if (!talks_) return;
  log_.push_back(fmt::format("{:9.3f} ", absl::ToUnixMillis(timeline_.now()) / 1000.0 - 1000) +
                 fmt::format(fmt::runtime(format), args...));
}

}  // namespace moesaic
