// FaultInjection: does to the processes of this host what a chaos run asks for. Off unless the
// agent was started with --allow-chaos.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "proto/agent.pb.h"

namespace moesaic {

// Thread-safe.
class FaultInjection {
 public:
  explicit FaultInjection(bool allowed) : allowed_(allowed) {}
  // Ends what lasts: stopped and slowed ranks go on.
  ~FaultInjection();
  FaultInjection(const FaultInjection&) = delete;
  FaultInjection& operator=(const FaultInjection&) = delete;

  // `mark`: the "NAME=VALUE" by which the processes of the running generation are found; not looked
  // at for a fault of the node. PermissionDenied when chaos is not allowed; NotFound when there is
  // no such rank here; FailedPrecondition: this host has no network of its own to cut.
  // Faults that last go on after the return. KILL of the node does not return.
  absl::Status Inject(const InjectedFault& command, const std::string& mark);

  // Whether snapshots cannot be written to disk now (DISK_FULL).
  bool disk_is_full() const;

 private:
  absl::Status HitRank(const InjectedFault& command, const std::string& mark);
  absl::Status HitNode(const Fault& fault);
  // Calls `end` after `length`, or when this is destroyed.
  void EndLater(absl::Duration length, std::function<void()> end);
  void Slow(pid_t rank, const Fault& fault);
  // Sleeps; false when this is being destroyed.
  bool Sleep(absl::Duration length);

  const bool allowed_;
  mutable Mutex mutex_;
  CondVar stopped_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time disk_full_until_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  std::vector<std::thread> lasting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moesaic
