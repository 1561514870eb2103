// Watchdog: ends a worker whose training loop has made no progress for too long, after writing what
// it was waiting for. Progress is written by the loop itself (SetPlace) and by the communicators it
// calls (OperationObserver); a helper thread that only pretends to be alive would hide a hang.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "parallel/comm/communicator.h"

namespace moesaic {

// Where the loop is, for the dump.
struct LoopPlace {
  uint64_t step = 0;
  int64_t micro_batch = -1;
  std::string phase = {};  // "restore", "forward", "backward", "reduce", "update", ...
  std::string block = {};  // the block in progress: "layers.3.feed_forward"
};

struct WatchdogOptions {
  const Clock* clock = &Clock::System();
  // Called once with the dump, on the watchdog's thread; the worker's writes it and exits 86.
  std::function<void(const std::string& dump)> expired;
};

// Thread-safe.
class Watchdog : public OperationObserver {
 public:
  explicit Watchdog(WatchdogOptions options);
  ~Watchdog() override;

  // Sets the deadline and starts the thread that calls Check ten times a deadline. Before it, Check
  // does nothing: nobody has said yet how long is too long.
  void Start(absl::Duration deadline);
  void Stop();
  // The deadline without the thread; for tests, which call Check themselves.
  void SetDeadline(absl::Duration deadline);

  void SetPlace(LoopPlace place);
  void Entered(const OperationStamp& stamp) override;
  void Left() override;

  // Calls `expired` when there was no sign of progress for the deadline. Returns whether it did.
  bool Check();

 private:
  struct Pending {
    OperationStamp stamp;
    absl::Time since;
  };
  std::string Dump(absl::Time now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const WatchdogOptions options_;
  Mutex mu_;
  CondVar stop_changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Duration deadline_ ABSL_GUARDED_BY(mu_) = absl::InfiniteDuration();
  bool fired_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time last_progress_ ABSL_GUARDED_BY(mu_);
  LoopPlace place_ ABSL_GUARDED_BY(mu_);
  std::unordered_map<std::thread::id, Pending> pending_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace moesaic
