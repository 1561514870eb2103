// MpiRun: one generation's mpirun, from its start until no process of it is left on this host.
#pragma once

#include <atomic>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/agent/rank_environment.h"
#include "launcher/agent/rank_logs.h"
#include "proto/agent.pb.h"

namespace moesaic {

struct MpiRunOptions {
  StartGeneration start;
  RankHost host;
  std::string mpirun = "mpirun";
  std::string worker;  // path of the program
  std::string folder;  // temporary files of the generation; in tmpfs
  uint32_t slots = 1;  // of this host
  // For ranks on several hosts.
  std::string shim;     // path of moesaic-orted-shim
  std::string network;  // that mpirun and the ranks talk over: interfaces or subnets
  std::map<std::string, std::string> shim_environment;  // MOESAIC_SHIM_TLS_*
};

struct MpiRunResult {
  // The first failing rank's; 128 + signal; 127: mpirun or the worker is missing. Of a host that is
  // not the head: its orted's.
  int exit_code = 0;
  std::string first_failure;
  std::optional<uint32_t> failed_rank = std::nullopt;  // any rank of a host that was lost
  bool clean = true;                                   // no process is left
};

class MpiRun {
 public:
  explicit MpiRun(MpiRunOptions options) : options_(std::move(options)) {}

  // Returns when all is over. mpirun dies with the calling thread (PR_SET_PDEATHSIG), so that
  // thread must not end before.
  MpiRunResult Run();
  // Thread-safe. now: SIGKILL; otherwise SIGTERM, and SIGKILL when that does not help.
  void Kill(bool now) { kill_.store(now ? 2 : (kill_.load() == 2 ? 2 : 1)); }

  // What Run executes; for tests.
  std::vector<std::string> Arguments() const;
  std::map<std::string, std::string> Environment() const;

 private:
  absl::Status Check() const;
  absl::Status WriteHostFiles() const;
  MpiRunResult Watch(pid_t child, int output);
  MpiRunResult ResultOf(int wait_status, const RankLogs& logs) const;

  const MpiRunOptions options_;
  std::atomic<int> kill_{0};
};

}  // namespace moesaic
