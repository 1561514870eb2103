// EmbeddedRun: a job on this host alone, with its coordinator and agent in this process. They talk
// over loopback as they would across hosts, so that nothing here is a special case.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/coordinator.pb.h"
#include "proto/job.pb.h"

namespace moesaic {

struct EmbeddedRunOptions {
  JobSpec spec;  // resolved and valid
  std::string resume = "auto";
  std::string worker;  // path of moesaic-worker
  std::string mpirun = "mpirun";
  std::string binary;                      // version and build, for manifests
  uint32_t cores = 1;                      // of this host
  std::string shared_memory = "/dev/shm";  // a tmpfs
  std::map<std::string, std::string> environment;
};

class EmbeddedRun {
 public:
  // ResourceExhausted: this host is too small for the job. InvalidArgument: the layout fits no
  // number of ranks. FailedPrecondition: another run uses run.dir. One that a killed run left there
  // is marked as failed.
  static absl::StatusOr<std::unique_ptr<EmbeddedRun>> Start(EmbeddedRunOptions options);
  // Kills what still runs, and leaves nothing in shared memory.
  virtual ~EmbeddedRun() = default;

  // Every event until the job has ended; then its last status.
  virtual absl::StatusOr<JobStatus> Follow(
      const std::function<void(const JobEvent&)>& on_event) = 0;
  // Thread-safe. Saves first, unless `now`.
  virtual absl::Status Stop(bool now) = 0;
};

}  // namespace moesaic
