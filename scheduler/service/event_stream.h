// EventStream: the writing half of WatchJob. It reads events from the core page by page as its
// client takes them, so that a slow reader costs nothing and holds nobody up.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/service/coordinator.h"

namespace moesaic {

// Deletes itself when the stream is over. `core` must outlive it.
class EventStream : public grpc::ServerWriteReactor<JobEvent> {
 public:
  EventStream(CoordinatorCore* core, const WatchJobRequest& request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // What the core holds of the stream: outlives it.
  class Feed : public EventListener {
   public:
    Feed(EventStream* stream, CoordinatorCore* core, const WatchJobRequest& request)
        : core_(core), job_(request.job()), stream_(stream), after_(request.after_sequence()) {}

    void Wake() override { Pump(); }
    void OnWritten(bool ok);
    void End(absl::Status status);
    void Detach();

   private:
    enum class Next { kNothing, kWrite, kFinish };
    void Pump();
    Next Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
    void ReadPage() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

    CoordinatorCore* const core_;
    const std::string job_;
    Mutex mutex_;
    EventStream* stream_ ABSL_GUARDED_BY(mutex_);
    std::deque<JobEvent> page_ ABSL_GUARDED_BY(mutex_);
    uint64_t after_ ABSL_GUARDED_BY(mutex_);
    JobEvent current_;  // while writing_
    bool writing_ ABSL_GUARDED_BY(mutex_) = false;
    bool ending_ ABSL_GUARDED_BY(mutex_) = false;
    bool finished_ ABSL_GUARDED_BY(mutex_) = false;
    absl::Status status_;  // set before finished_, then constant
  };

  CoordinatorCore* const core_;
  const std::shared_ptr<Feed> feed_;
};

}  // namespace moesaic
