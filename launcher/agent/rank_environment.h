// RankEnvironment: all that the ranks of a generation see of the environment on one host. Each
// agent gives it to the mpirun or orted that it starts, which hand it on; so values may differ by
// host, and no secret is on a command line.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "proto/agent.pb.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

// Names of variables that moesaic-worker reads.
inline constexpr char kTokenVariable[] = "MOESAIC_TOKEN";
inline constexpr char kCoordinatorVariable[] = "MOESAIC_COORDINATOR";
// The generation's folder on this host. It also marks the generation's processes.
inline constexpr char kRunFolderVariable[] = "MOESAIC_RUN_FOLDER";
// "1": the rank ends at a SIGRTMIN, with the code that comes with it (fault_injection.h).
inline constexpr char kChaosVariable[] = "MOESAIC_CHAOS";

// Names of variables that moesaic-orted-shim reads besides the token: of the generation, and of a
// file of lines "HOST ADDRESS" (of the agent there).
inline constexpr char kShimJobVariable[] = "MOESAIC_SHIM_JOB";
inline constexpr char kShimGenerationVariable[] = "MOESAIC_SHIM_GENERATION";
inline constexpr char kShimHostsVariable[] = "MOESAIC_SHIM_HOSTS";
// "MOESAIC_TLS_CA" -> "MOESAIC_SHIM_TLS_CA": the shim's own of a variable that ranks have, too.
std::string ShimVariable(absl::string_view name);

// Where ranks run: the same for all generations of an agent.
struct RankHost {
  std::string coordinator;  // host:port, as this host reaches it
  // Of the agent; only an allow-list is passed on. LD_* and OMPI_MCA_* can load code and stay out.
  std::map<std::string, std::string> environment;
  std::optional<TlsFiles> tls;  // of workers
};

// `folder`: for temporary files of the generation, in tmpfs.
std::map<std::string, std::string> RankEnvironment(const RankHost& host,
                                                   const StartGeneration& start,
                                                   const std::string& folder);

// "NAME=VALUE" by which FindMarked finds processes with this folder, or one below it.
std::string RunFolderMark(absl::string_view folder);

}  // namespace moesaic
