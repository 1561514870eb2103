#include "launcher/run/interrupts.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <utility>

namespace moesaic {
namespace {

sigset_t SetOf(const std::vector<int>& signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) sigaddset(&set, signal);
  return set;
}

}  // namespace

Interrupts::Interrupts(std::function<void(int, int)> on_signal)
    : Interrupts({SIGINT, SIGTERM, SIGHUP}, std::move(on_signal)) {}

Interrupts::Interrupts(std::vector<int> signals, std::function<void(int, int)> on_signal)
    : signals_(std::move(signals)), on_signal_(std::move(on_signal)) {
  const sigset_t set = SetOf(signals_);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  fd_ = signalfd(-1, &set, SFD_CLOEXEC);
  thread_ = std::thread([this] { Wait(); });
}

Interrupts::~Interrupts() {
  stopping_ = true;
  thread_.join();
  close(fd_);
  const sigset_t set = SetOf(signals_);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void Interrupts::Wait() {
  int count = 0;
  while (!stopping_) {
    pollfd poll_fd = {fd_, POLLIN, 0};
    if (poll(&poll_fd, 1, 100) != 1) continue;
    signalfd_siginfo info;
    if (read(fd_, &info, sizeof(info)) != sizeof(info)) continue;
    const int signal = static_cast<int>(info.ssi_signo);
    if (++count == 1) first_ = signal;
    on_signal_(signal, count);
  }
}

}  // namespace moesaic
