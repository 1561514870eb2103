// Interrupts: signals as calls, from a thread of its own.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace moesaic {

class Interrupts {
 public:
  // SIGINT, SIGTERM and SIGHUP, or `signals`. Blocks them in this thread and those started after;
  // make it before them. `on_signal` gets the signal's number and how many came so far.
  explicit Interrupts(std::function<void(int signal, int count)> on_signal);
  Interrupts(std::vector<int> signals, std::function<void(int signal, int count)> on_signal);
  ~Interrupts();

  // The first that came; 0: none.
  int first() const { return first_.load(); }

 private:
  void Wait();

  const std::vector<int> signals_;
  const std::function<void(int, int)> on_signal_;
  std::atomic<int> first_{0};
  std::atomic<bool> stopping_{false};
  int fd_;
  std::thread thread_;
};

}  // namespace moesaic
