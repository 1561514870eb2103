#include "trainer/loop/watchdog.h"

#include <fmt/format.h>

#include <utility>

namespace moesaic {

Watchdog::Watchdog(WatchdogOptions options)
    : options_(std::move(options)), last_progress_(options_.clock->Now()) {}

Watchdog::~Watchdog() { Stop(); }

void Watchdog::SetDeadline(absl::Duration deadline) {
  MutexLock lock(&mu_);
  deadline_ = deadline;
  last_progress_ = options_.clock->Now();
}

void Watchdog::Start(absl::Duration deadline) {
  SetDeadline(deadline);
  thread_ = std::thread([this, deadline] {
    for (;;) {
      {
        MutexLock lock(&mu_);
        if (!stopping_) stop_changed_.WaitFor(&mu_, deadline / 10);
        if (stopping_) return;
      }
      Check();
    }
  });
}

void Watchdog::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    stop_changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void Watchdog::SetPlace(LoopPlace place) {
  MutexLock lock(&mu_);
  place_ = std::move(place);
  last_progress_ = options_.clock->Now();
}

void Watchdog::Entered(const OperationStamp& stamp) {
  MutexLock lock(&mu_);
  last_progress_ = options_.clock->Now();
  pending_[std::this_thread::get_id()] = {stamp, last_progress_};
}

void Watchdog::Left() {
  MutexLock lock(&mu_);
  last_progress_ = options_.clock->Now();
  pending_.erase(std::this_thread::get_id());
}

bool Watchdog::Check() {
  std::string dump;
  {
    MutexLock lock(&mu_);
    const absl::Time now = options_.clock->Now();
    if (fired_ || now - last_progress_ < deadline_) return false;
    fired_ = true;
    dump = Dump(now);
  }
  options_.expired(dump);
  return true;
}

std::string Watchdog::Dump(absl::Time now) const {
  std::string out = fmt::format(
      "[watchdog] no progress for {:.1f} s (health.progress_timeout is {:.1f} s): step {}, "
      "micro-batch {}, phase {}{}{}",
      absl::ToDoubleSeconds(now - last_progress_), absl::ToDoubleSeconds(deadline_),
      place_.step, place_.micro_batch, place_.phase, place_.block.empty() ? "" : ", block ",
      place_.block);
  for (const auto& [thread, pending] : pending_) {
    out += fmt::format("; waiting {:.1f} s in {} of group {}, sequence {}, {} bytes",
                       absl::ToDoubleSeconds(now - pending.since), pending.stamp.operation,
                       pending.stamp.group, pending.stamp.sequence, pending.stamp.bytes);
  }
  if (pending_.empty()) out += "; in no collective: this rank itself is slow or stopped";
  return out;
}

}  // namespace moesaic
