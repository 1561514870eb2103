// MpiRun: one generation's mpirun, from its start until no process of it is left on this host.
#pragma once

#include <atomic>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/agent.pb.h"

namespace moesaic {

struct MpiRunOptions {
  StartGeneration start;
  std::string coordinator;  // host:port
  std::string mpirun = "mpirun";
  std::string worker;  // path of the program
  std::string folder;  // temporary files of the generation; in tmpfs
  std::string run_id;  // marks its processes
  uint32_t slots = 1;  // of this host
  std::map<std::string, std::string>
      environment;  // of this process; only an allow-list is passed on
};

struct MpiRunResult {
  int exit_code =
      0;  // the first failing rank's; 128 + signal; 127: mpirun or the worker is missing
  std::string first_failure;
  bool clean = true;  // no process is left
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
  MpiRunResult Watch(pid_t child, int output);

  const MpiRunOptions options_;
  std::atomic<int> kill_{0};
};

}  // namespace moesaic
