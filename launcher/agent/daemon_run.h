// DaemonRun: one generation on a host that is not its head: waits for the head to ask for an orted,
// which starts this host's ranks, until no process of the generation is left here.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "launcher/agent/mpi_run.h"
#include "launcher/agent/rank_environment.h"
#include "proto/agent.pb.h"

namespace moesaic {

struct DaemonRunOptions {
  StartGeneration start;
  RankHost host;
  std::string orted = "orted";
  std::string worker;  // path of the program; its orphans are reaped by name
  std::string folder;  // temporary files of the generation; in tmpfs
};

// Run is one thread's; the rest is thread-safe.
class DaemonRun {
 public:
  using Write = std::function<bool(const DaemonOutput&)>;
  using IsCancelled = std::function<bool()>;

  explicit DaemonRun(DaemonRunOptions options) : options_(std::move(options)) {}
  ~DaemonRun();
  DaemonRun(const DaemonRun&) = delete;
  DaemonRun& operator=(const DaemonRun&) = delete;

  // Returns when all is over; the orted dies with the calling thread. An orted that ends with 0 is
  // no cause of anything: then this waits some time for the head's end to be known (Kill).
  MpiRunResult Run();
  // now: SIGKILL; otherwise the head has been asked to end, and this waits for it for some time.
  void Kill(bool now);

  // Runs the orted, hands what it writes to `write`, and returns after its exit code. Kills it when
  // `write` fails or `is_cancelled`. AlreadyExists for a second one; InvalidArgument for a command
  // that mpirun does not give.
  absl::Status Serve(const RunDaemonRequest& request, const Write& write,
                     const IsCancelled& is_cancelled);

  const StartGeneration& start() const { return options_.start; }

 private:
  enum class Phase { kWaiting, kAsked, kRunning, kEnded };

  bool WaitForCommand();
  absl::Status StartOrted();
  int WaitForOrted();
  void End(int exit_code);
  void KillAll();
  Phase phase() const;
  bool Pump(int pipe, bool is_error, const Write& write) const;
  MpiRunResult ResultOf(int wait_status) const;

  const DaemonRunOptions options_;
  std::atomic<int> kill_{0};  // 1: politely, 2: at once

  mutable Mutex mutex_;
  CondVar changed_;
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kWaiting;
  std::vector<std::string> command_ ABSL_GUARDED_BY(mutex_);
  std::string failure_ ABSL_GUARDED_BY(mutex_);  // it could not be started
  int exit_code_ ABSL_GUARDED_BY(mutex_) = 0;
  // Set before kRunning, then constant.
  int out_ = -1;
  int err_ = -1;
  pid_t child_ = -1;
};

}  // namespace moesaic
