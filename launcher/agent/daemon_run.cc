#include "launcher/agent/daemon_run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/exit_codes.h"
#include "base/log.h"
#include "launcher/agent/child_process.h"
#include "launcher/agent/marked_processes.h"
#include "launcher/agent/orted_command.h"

namespace moesaic {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(20);
constexpr int kPollMilliseconds = 50;
// The head gives mpirun three seconds to end politely.
constexpr absl::Duration kTermGrace = absl::Seconds(4);
constexpr absl::Duration kHeadGrace = absl::Seconds(3);
constexpr absl::Duration kKillLimit = absl::Seconds(10);
constexpr absl::Duration kReapLimit = absl::Seconds(2);

}  // namespace

DaemonRun::~DaemonRun() {
  if (out_ >= 0) close(out_);
  if (err_ >= 0) close(err_);
}

void DaemonRun::Kill(bool now) {
  MutexLock lock(&mutex_);
  kill_ = std::max(kill_.load(), now ? 2 : 1);
  changed_.NotifyAll();
}

DaemonRun::Phase DaemonRun::phase() const {
  MutexLock lock(&mutex_);
  return phase_;
}

MpiRunResult DaemonRun::Run() {
  MpiRunResult result;
  if (WaitForCommand()) {
    if (const absl::Status started = StartOrted(); started.ok()) {
      result = ResultOf(WaitForOrted());
    } else {
      result = {.exit_code = kExitNotStarted, .first_failure = std::string(started.message())};
      MutexLock lock(&mutex_);
      failure_ = result.first_failure;
    }
  }
  result.clean = KillMarked(RunFolderMark(options_.folder), kKillLimit);
  ReapOrphans({options_.worker}, kReapLimit);
  End(result.exit_code);
  const absl::Time limit = Clock::System().Now() + kHeadGrace;
  MutexLock lock(&mutex_);
  while (result.exit_code == 0 && kill_ == 0 && Clock::System().Now() < limit) {
    changed_.WaitFor(&mutex_, kPoll);
  }
  return result;
}

// False when it is killed before.
bool DaemonRun::WaitForCommand() {
  MutexLock lock(&mutex_);
  while (phase_ == Phase::kWaiting && kill_ == 0) changed_.Wait(&mutex_);
  return phase_ == Phase::kAsked && kill_ < 2;
}

absl::Status DaemonRun::StartOrted() {
  ChildProcess child;
  child.environment = RankEnvironment(options_.host, options_.start, options_.folder);
  child.death_signal = SIGKILL;
  const auto path = child.environment.find("PATH");
  child.program = FindProgram(options_.orted, path == child.environment.end() ? "" : path->second);
  if (child.program.empty()) {
    return absl::NotFoundError(
        fmt::format("{} was not found; install Open MPI (Debian: openmpi-bin)", options_.orted));
  }
  {
    MutexLock lock(&mutex_);
    child.arguments = command_;
  }
  int out[2];
  int err[2];
  if (pipe2(out, O_CLOEXEC) != 0) return absl::InternalError(strerror(errno));
  out_ = out[0];
  if (pipe2(err, O_CLOEXEC) != 0) {
    close(out[1]);
    return absl::InternalError(strerror(errno));
  }
  err_ = err[0];
  child.out = out[1];
  child.err = err[1];
  const absl::StatusOr<pid_t> pid = StartChild(child);
  close(out[1]);
  close(err[1]);
  if (!pid.ok()) return pid.status();
  child_ = *pid;
  fcntl(out_, F_SETFL, O_NONBLOCK);
  fcntl(err_, F_SETFL, O_NONBLOCK);
  MutexLock lock(&mutex_);
  phase_ = Phase::kRunning;
  changed_.NotifyAll();
  return absl::OkStatus();
}

// Its wait status.
int DaemonRun::WaitForOrted() {
  absl::Time asked_at = absl::InfiniteFuture();
  bool killed = false;
  int wait_status = 0;
  while (waitpid(child_, &wait_status, WNOHANG) == 0) {
    const absl::Time now = Clock::System().Now();
    if (kill_ > 0) asked_at = std::min(asked_at, now);
    if (!killed && (kill_ == 2 || now > asked_at + kTermGrace)) {
      KillAll();
      killed = true;
    }
    MutexLock lock(&mutex_);
    changed_.WaitFor(&mutex_, kPoll);
  }
  return wait_status;
}

void DaemonRun::KillAll() {
  kill(-child_, SIGKILL);
  for (const pid_t pid : FindMarked(RunFolderMark(options_.folder))) kill(pid, SIGKILL);
}

MpiRunResult DaemonRun::ResultOf(int wait_status) const {
  MpiRunResult result;
  result.exit_code = ExitCodeOf(wait_status);
  if (result.exit_code != 0 && kill_ == 0) {
    result.first_failure = fmt::format("its orted {}", DescribeWaitStatus(wait_status));
  }
  return result;
}

void DaemonRun::End(int exit_code) {
  MutexLock lock(&mutex_);
  phase_ = Phase::kEnded;
  exit_code_ = exit_code;
  changed_.NotifyAll();
}

absl::Status DaemonRun::Serve(const RunDaemonRequest& request, const Write& write,
                              const IsCancelled& is_cancelled) {
  const auto command = CheckOrtedCommand({request.arguments().begin(), request.arguments().end()});
  if (!command.ok()) return command.status();
  {
    MutexLock lock(&mutex_);
    if (phase_ != Phase::kWaiting) {
      return absl::AlreadyExistsError("this generation has had its orted on this host");
    }
    phase_ = Phase::kAsked;
    command_ = *command;
    changed_.NotifyAll();
    while (phase_ == Phase::kAsked) changed_.Wait(&mutex_);
    if (!failure_.empty()) return absl::NotFoundError(failure_);
  }
  bool going_on = true;
  while (going_on && phase() != Phase::kEnded) {
    pollfd pipes[] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};
    poll(pipes, 2, kPollMilliseconds);
    if (((pipes[0].revents | pipes[1].revents) & POLLIN) == 0) absl::SleepFor(kPoll);  // hung up
    going_on = !is_cancelled() && Pump(out_, false, write) && Pump(err_, true, write);
  }
  if (!going_on) {
    Kill(true);
    return absl::CancelledError("the head went away");
  }
  DaemonOutput last;
  if (!Pump(out_, false, write) || !Pump(err_, true, write)) return absl::OkStatus();
  MutexLock lock(&mutex_);
  last.set_exit_code(exit_code_);
  write(last);
  return absl::OkStatus();
}

// What there is now; false when nobody takes it.
bool DaemonRun::Pump(int pipe, bool is_error, const Write& write) const {
  char buffer[1 << 14];
  ssize_t bytes;
  while (pipe >= 0 && (bytes = read(pipe, buffer, sizeof(buffer))) > 0) {
    DaemonOutput output;
    if (is_error) {
      output.set_err(buffer, bytes);
    } else {
      output.set_out(buffer, bytes);
    }
    if (!write(output)) return false;
  }
  return true;
}

}  // namespace moesaic
