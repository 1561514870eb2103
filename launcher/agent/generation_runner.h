// GenerationRunner: the processes of generations on this host, one generation at a time, from a
// thread of its own with which they die.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>

#include "base/mutex.h"
#include "launcher/agent/agent_folder.h"
#include "launcher/agent/agent_snapshots.h"
#include "launcher/agent/mpi_run.h"
#include "proto/agent.pb.h"

namespace moesaic {

struct GenerationRunnerOptions {
  std::string coordinator;  // host:port, as ranks of this host reach it
  std::string worker;       // path of moesaic-worker
  std::string mpirun;
  uint32_t slots = 1;
  std::map<std::string, std::string> environment;  // of this process
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

 private:
  void Run();
  MpiRunResult RunGeneration(const StartGeneration& start);
  MpiRunResult RunHead(const StartGeneration& start, const std::string& folder);
  void WaitForKill();
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
  int killed_ ABSL_GUARDED_BY(mutex_) = 0;  // the front one; 1: politely, 2: at once
  MpiRun* run_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::thread thread_;
};

}  // namespace moesaic
