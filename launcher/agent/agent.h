// Agent: one a host. It registers with the coordinator and keeps its lease, runs generations, owns
// the shared memory that ranks write their snapshots into, and writes those to disk.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

struct AgentOptions {
  std::string name;         // of the node
  std::string coordinator;  // host:port
  // Of this agent, with the files that it came from (for moesaic-orted-shim), and where its workers
  // find theirs; none: plain text.
  std::optional<TlsIdentity> tls;
  std::optional<TlsFiles> tls_files;
  std::optional<TlsFiles> worker_tls;
  bool insecure = false;  // plain text off loopback
  uint32_t slots = 1;
  uint32_t cores = 1;
  // host:port of the service for other agents and workers, and the host that they reach it by
  // (empty: that of `listen`).
  std::string listen = "127.0.0.1:0";
  std::string advertise;
  std::string version;
  std::string worker;  // path of moesaic-worker
  std::string shim;    // path of moesaic-orted-shim; for jobs on several hosts
  std::string mpirun = "mpirun";
  std::string orted = "orted";
  std::string shared_memory = "/dev/shm";
  std::map<std::string, std::string> environment;
  bool allow_chaos = false;  // faults on purpose (fault_injection.h)
  LogLevel news = LogLevel::kDebug;  // of lines about what goes as it should
};

// Thread-safe.
class Agent {
 public:
  // Connects in the background and registers again whenever the connection breaks. Makes this
  // process the reaper of its orphans. FailedPrecondition for plain text off loopback without
  // `insecure`; Unavailable when it cannot listen.
  static absl::StatusOr<std::unique_ptr<Agent>> Start(AgentOptions options);
  // Kills what runs and removes all that it made in shared memory.
  virtual ~Agent() = default;

  // host:port where it listens, as others reach it.
  virtual const std::string& address() const = 0;
  // This host goes away soon: asks the coordinator to move the ranks off it. False when there is
  // nobody to ask.
  virtual bool Preempt(const std::string& reason) = 0;
  // Returns when the coordinator has no need of this agent any more (AgentLeave, after Preempt or a
  // drain), with the reason, or after Release.
  virtual std::string WaitUntilReleased() = 0;
  virtual void Release(const std::string& reason) = 0;
};

}  // namespace moesaic
