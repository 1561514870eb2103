#include "launcher/agent/rank_environment.h"

#include <unistd.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace moesaic {
namespace {

const std::set<std::string>& PassedOn() {
  static const std::set<std::string> names = {"PATH", "HOME", "USER",   "LOGNAME",
                                              "LANG", "TZ",   "LC_ALL", "MOESAIC_LOG_LEVEL",
                                              kChaosVariable};
  return names;
}

}  // namespace

std::map<std::string, std::string> RankEnvironment(const RankHost& host,
                                                   const StartGeneration& start,
                                                   const std::string& folder) {
  std::map<std::string, std::string> passed;
  for (const auto& [name, value] : host.environment) {
    if (PassedOn().contains(name)) passed[name] = value;
  }
  passed[kTokenVariable] = start.token();
  passed[kCoordinatorVariable] = host.coordinator;
  passed[kRunFolderVariable] = folder;
  if (host.tls) {
    for (const auto& [name, value] : TlsVariables(*host.tls)) passed[name] = value;
  }
  // Open MPI's session folders, and whatever else a rank leaves.
  passed["TMPDIR"] = folder;
  passed["OMP_NUM_THREADS"] = std::to_string(start.threads());
  if (start.allow_root() && geteuid() == 0) {
    passed["OMPI_ALLOW_RUN_AS_ROOT"] = "1";
    passed["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1";
  }
  return passed;
}

std::string ShimVariable(absl::string_view name) {
  return absl::StrCat("MOESAIC_SHIM_", absl::StripPrefix(name, "MOESAIC_"));
}

std::string RunFolderMark(absl::string_view folder) {
  return absl::StrCat(kRunFolderVariable, "=", folder);
}

}  // namespace moesaic
