// Interrupts: SIGINT, SIGTERM and SIGHUP as calls, from a thread of its own.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace moesaic {

class Interrupts {
 public:
  // Blocks the signals in this thread and those started after; make it before them. `on_signal`
  // gets the signal's number and how many came so far.
  explicit Interrupts(std::function<void(int signal, int count)> on_signal);
  ~Interrupts();

  // The first that came; 0: none.
  int first() const { return first_.load(); }

 private:
  void Wait();

  const std::function<void(int, int)> on_signal_;
  std::atomic<int> first_{0};
  std::atomic<bool> stopping_{false};
  int fd_;
  std::thread thread_;
};

}  // namespace moesaic
