#include "launcher/agent/fault_injection.h"

#include <fmt/format.h>
#include <ifaddrs.h>
#include <linux/close_range.h>
#include <net/if.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "absl/time/clock.h"
#include "base/log.h"
#include "launcher/agent/marked_processes.h"

namespace moesaic {
namespace {

// A slowed rank runs for so long, then stands still (factor - 1) times as long.
constexpr absl::Duration kSlice = absl::Milliseconds(20);
// By Open MPI, in the environment of a rank.
constexpr char kRankVariable[] = "OMPI_COMM_WORLD_RANK";

absl::StatusOr<pid_t> FindRank(uint32_t rank, const std::string& mark) {
  const std::vector<pid_t> marked = FindMarked(mark);
  for (const pid_t pid : FindMarked(fmt::format("{}={}", kRankVariable, rank))) {
    if (std::count(marked.begin(), marked.end(), pid) > 0) return pid;
  }
  return absl::NotFoundError(fmt::format("rank {} does not run on this host", rank));
}

bool OwnNetwork() {
  struct stat own = {}, first = {};
  return stat("/proc/self/ns/net", &own) == 0 && stat("/proc/1/ns/net", &first) == 0 &&
         own.st_ino != first.st_ino;
}

absl::Status SetInterfaces(bool up) {
  const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  ifaddrs* list = nullptr;
  if (fd < 0 || getifaddrs(&list) != 0) {
    return absl::InternalError(fmt::format("interfaces: {}", strerror(errno)));
  }
  std::set<std::string> names;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if ((entry->ifa_flags & IFF_LOOPBACK) == 0) names.insert(entry->ifa_name);
  }
  freeifaddrs(list);
  absl::Status status;
  for (const std::string& name : names) {
    ifreq request = {};
    name.copy(request.ifr_name, IFNAMSIZ - 1);
    bool done = ioctl(fd, SIOCGIFFLAGS, &request) == 0;
    request.ifr_flags =
        static_cast<short>(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
    done = done && ioctl(fd, SIOCSIFFLAGS, &request) == 0;
    if (!done) status = absl::InternalError(fmt::format("{}: {}", name, strerror(errno)));
  }
  close(fd);
  return status;
}

// Stops this process; a child that holds none of its files lets it go on.
absl::Status StopThisProcess(double seconds) {
  const pid_t parent = getpid();
  if (seconds > 0) {
    const pid_t middle = fork();
    if (middle < 0) return absl::InternalError(fmt::format("fork: {}", strerror(errno)));
    if (middle == 0) {
      if (fork() != 0) _exit(0);
      syscall(SYS_close_range, 0, ~0u, 0);
      timespec length = absl::ToTimespec(absl::Seconds(seconds));
      nanosleep(&length, nullptr);
      kill(parent, SIGCONT);
      _exit(0);
    }
    waitpid(middle, nullptr, 0);
  }
  kill(parent, SIGSTOP);
  return absl::OkStatus();
}

}  // namespace

FaultInjection::~FaultInjection() {
  std::vector<std::thread> lasting;
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    stopped_.NotifyAll();
    lasting.swap(lasting_);
  }
  for (std::thread& thread : lasting) thread.join();
}

absl::Status FaultInjection::Inject(const InjectedFault& command, const std::string& mark) {
  if (!allowed_) {
    return absl::PermissionDeniedError("this agent was not started with --allow-chaos");
  }
  return command.has_rank() ? HitRank(command, mark) : HitNode(command.fault());
}

bool FaultInjection::disk_is_full() const {
  MutexLock lock(&mutex_);
  return absl::Now() < disk_full_until_;
}

absl::Status FaultInjection::HitRank(const InjectedFault& command, const std::string& mark) {
  const absl::StatusOr<pid_t> found = FindRank(command.rank(), mark);
  if (!found.ok()) return found.status();
  const pid_t rank = *found;
  const Fault& fault = command.fault();
  switch (fault.kind()) {
    case Fault::KILL:
      kill(rank, SIGKILL);
      return absl::OkStatus();
    case Fault::SEGV:
      kill(rank, SIGSEGV);
      return absl::OkStatus();
    case Fault::EXIT: {
      // The worker ends with this code, from wherever it is (launcher/worker/main.cc).
      sigval value = {};
      value.sival_int = fault.exit_code();
      sigqueue(rank, SIGRTMIN, value);
      return absl::OkStatus();
    }
    case Fault::STOP:
      kill(rank, SIGSTOP);
      if (fault.seconds() > 0) {
        EndLater(absl::Seconds(fault.seconds()), [rank] { kill(rank, SIGCONT); });
      }
      return absl::OkStatus();
    case Fault::SLOW:
      Slow(rank, fault);
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError("that fault cannot hit a rank");
  }
}

absl::Status FaultInjection::HitNode(const Fault& fault) {
  switch (fault.kind()) {
    case Fault::KILL:
      kill(getpid(), SIGKILL);
      return absl::OkStatus();
    case Fault::STOP:
      return StopThisProcess(fault.seconds());
    case Fault::DROP_NETWORK: {
      if (!OwnNetwork()) {
        return absl::FailedPreconditionError(
            "drop_net needs an agent in a network namespace of its own");
      }
      const absl::Status down = SetInterfaces(false);
      if (!down.ok()) return down;
      EndLater(absl::Seconds(fault.seconds()), [] {
        const absl::Status up = SetInterfaces(true);
        if (!up.ok()) LogError("the network stays down: {}", std::string(up.message()));
      });
      return absl::OkStatus();
    }
    case Fault::DISK_FULL: {
      MutexLock lock(&mutex_);
      disk_full_until_ = absl::Now() + absl::Seconds(fault.seconds());
      return absl::OkStatus();
    }
    default:
      return absl::InvalidArgumentError("that fault cannot hit a node");
  }
}

void FaultInjection::EndLater(absl::Duration length, std::function<void()> end) {
  MutexLock lock(&mutex_);
  lasting_.emplace_back([this, length, end = std::move(end)] {
    Sleep(length);
    end();
  });
}

void FaultInjection::Slow(pid_t rank, const Fault& fault) {
  const absl::Time until = absl::Now() + absl::Seconds(fault.seconds());
  const absl::Duration still = kSlice * (fault.factor() - 1);
  MutexLock lock(&mutex_);
  lasting_.emplace_back([this, rank, until, still] {
    while (absl::Now() < until && Sleep(kSlice) && kill(rank, SIGSTOP) == 0) {
      Sleep(still);
      kill(rank, SIGCONT);
    }
  });
}

bool FaultInjection::Sleep(absl::Duration length) {
  const absl::Time until = absl::Now() + length;
  MutexLock lock(&mutex_);
  while (!stopping_ && absl::Now() < until) stopped_.WaitFor(&mutex_, until - absl::Now());
  return !stopping_;
}

}  // namespace moesaic
