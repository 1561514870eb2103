// GenerationRunner: the processes of generations on this host, one generation at a time, from a
// thread of its own with which they die.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "launcher/agent/agent_folder.h"
#include "launcher/agent/agent_snapshots.h"
#include "launcher/agent/daemon_run.h"
#include "launcher/agent/mpi_run.h"
#include "proto/agent.pb.h"

namespace moesaic {

struct GenerationRunnerOptions {
  RankHost host;
  std::string worker;  // path of moesaic-worker
  std::string mpirun;
  std::string orted;
  std::string shim;     // path of moesaic-orted-shim
  std::string network;  // for ranks on several hosts, unless the job names one
  std::map<std::string, std::string> shim_environment;
  uint32_t slots = 1;
};

// Thread-safe.
class GenerationRunner {
 public:
  using Say = std::function<void(AgentMessage)>;

  // `folder` and `snapshots` must outlive this; `say` is called from the thread.
  GenerationRunner(GenerationRunnerOptions options, AgentFolder* folder, AgentSnapshots* snapshots,
                   Say say);
  // Kills what runs.
  ~GenerationRunner();
  GenerationRunner(const GenerationRunner&) = delete;
  GenerationRunner& operator=(const GenerationRunner&) = delete;

  // After what runs has ended. GenerationEnded follows, whatever happens.
  void Start(StartGeneration start);
  // One that does not run here is reported as ended at once.
  void Kill(const KillGeneration& kill);
  // The generation that runs or is about to.
  std::optional<StartGeneration> Running() const;

  // DaemonRun::Serve of the generation asked for. It may not have been started yet: mpirun can be
  // faster than the coordinator's message, which this waits for a while. FailedPrecondition "stale
  // generation" for one that does not come, or with another token.
  absl::Status ServeDaemon(const RunDaemonRequest& request, const DaemonRun::Write& write,
                           const DaemonRun::IsCancelled& is_cancelled);

 private:
  void Run();
  MpiRunResult RunGeneration(const StartGeneration& start);
  MpiRunResult RunHead(const StartGeneration& start, const std::string& folder);
  MpiRunResult RunOther(const StartGeneration& start, const std::string& folder);
  absl::StatusOr<std::shared_ptr<DaemonRun>> FindDaemon(const RunDaemonRequest& request,
                                                        const DaemonRun::IsCancelled& is_cancelled);
  void SayEnded(const std::string& job, uint64_t generation, const MpiRunResult& result);

  const GenerationRunnerOptions options_;
  AgentFolder* const folder_;
  AgentSnapshots* const snapshots_;
  const Say say_;

  mutable Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<StartGeneration> starts_ ABSL_GUARDED_BY(mutex_);  // the front one runs
  std::deque<KillGeneration> already_over_ ABSL_GUARDED_BY(mutex_);
  int killed_ ABSL_GUARDED_BY(mutex_) = 0;         // the front one; 1: politely, 2: at once
  MpiRun* run_ ABSL_GUARDED_BY(mutex_) = nullptr;  // on the head
  std::shared_ptr<DaemonRun> daemon_ ABSL_GUARDED_BY(mutex_);  // on another host
  std::thread thread_;
};

}  // namespace moesaic
