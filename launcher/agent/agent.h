// Agent: one a host. It registers with the coordinator and keeps its lease, runs generations, owns
// the shared memory that ranks write their snapshots into, and writes those to disk.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

struct AgentOptions {
  std::string name;         // of the node
  std::string coordinator;  // host:port
  // Of this agent, and where its workers find theirs; none: plain text.
  std::optional<TlsIdentity> tls;
  std::optional<TlsFiles> worker_tls;
  uint32_t slots = 1;
  uint32_t cores = 1;
  std::string host = "localhost";
  std::string version;
  std::string worker;  // path of moesaic-worker
  std::string mpirun = "mpirun";
  std::string shared_memory = "/dev/shm";
  std::map<std::string, std::string> environment;
};

// Thread-safe.
class Agent {
 public:
  // Connects in the background and registers again whenever the connection breaks. Makes this
  // process the reaper of its orphans.
  static absl::StatusOr<std::unique_ptr<Agent>> Start(AgentOptions options);
  // Kills what runs and removes all that it made in shared memory.
  virtual ~Agent() = default;
};

}  // namespace moesaic
