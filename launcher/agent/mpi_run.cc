#include "launcher/agent/mpi_run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/exit_codes.h"
#include "base/foreign_text.h"
#include "base/log.h"
#include "launcher/agent/child_process.h"
#include "launcher/agent/marked_processes.h"

namespace moesaic {
namespace {

constexpr int kPollMilliseconds = 50;
constexpr char kHostCharacters[] =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-";
// mpirun gives its ranks one second between SIGTERM and SIGKILL.
constexpr absl::Duration kTermGrace = absl::Seconds(3);
constexpr absl::Duration kKillLimit = absl::Seconds(10);
constexpr absl::Duration kReapLimit = absl::Seconds(2);

}  // namespace

std::map<std::string, std::string> MpiRun::Environment() const {
  std::map<std::string, std::string> environment =
      RankEnvironment(options_.host, options_.start, options_.folder);
  if (options_.start.hosts_size() > 1) {
    environment.insert(options_.shim_environment.begin(), options_.shim_environment.end());
    environment[kShimJobVariable] = options_.start.job();
    environment[kShimGenerationVariable] = std::to_string(options_.start.generation());
    environment[kShimHostsVariable] = options_.folder + "/agents";
  }
  return environment;
}

std::vector<std::string> MpiRun::Arguments() const {
  const StartGeneration& start = options_.start;
  // The name, not the path: with a path mpirun would set search paths on the other hosts.
  std::vector<std::string> arguments = {"mpirun",
                                        "-np",
                                        std::to_string(start.ranks()),
                                        "--hostfile",
                                        options_.folder + "/hosts",
                                        "--bind-to",
                                        "none",
                                        "--tag-output"};
  const auto mca = [&](const std::string& name, const std::string& value) {
    arguments.insert(arguments.end(), {"--mca", name, value});
  };
  // Ranks have nothing to do at SIGTERM.
  mca("odls_base_sigkill_timeout", "0");
  if (start.hosts_size() > 1) {
    // Else the daemons leave their agents for the background, or start each other.
    arguments.push_back("--leave-session-attached");
    mca("plm_rsh_no_tree_spawn", "1");
    mca("plm_rsh_agent", options_.shim);
    mca("orte_keep_fqdn_hostnames", "1");
    mca("btl", "self,vader,tcp");
    mca("oob_tcp_if_include", options_.network);
    mca("btl_tcp_if_include", options_.network);
  } else {
    mca("btl", "self,vader");
  }
  if (start.oversubscribe()) arguments.push_back("--oversubscribe");
  arguments.insert(arguments.end(), {options_.worker, "train", "--job", start.job(), "--generation",
                                     std::to_string(start.generation())});
  return arguments;
}

absl::Status MpiRun::Check() const {
  const StartGeneration& start = options_.start;
  if (access(options_.worker.c_str(), X_OK) != 0) {
    return absl::NotFoundError(fmt::format("the worker program {} was not found", options_.worker));
  }
  if (geteuid() == 0 && !start.allow_root()) {
    return absl::FailedPreconditionError(
        "mpirun does not run as root; use another user, or launch.allow_root: true");
  }
  if (start.hosts_size() < 2) return absl::OkStatus();
  if (access(options_.shim.c_str(), X_OK) != 0) {
    return absl::NotFoundError(fmt::format("{} was not found", options_.shim));
  }
  std::set<std::string> hosts;
  for (const HostSlots& host : start.hosts()) {
    if (!hosts.insert(host.host()).second) {
      return absl::FailedPreconditionError(
          fmt::format("two of its nodes have the address {}, and mpirun needs a host a node (agent "
                      "--advertise)",
                      host.host()));
    }
    if (host.host().empty() ||
        host.host().find_first_not_of(kHostCharacters) != std::string::npos) {
      return absl::InvalidArgumentError(fmt::format("node {} has no valid host name: \"{}\"",
                                                    host.node(), EscapeControls(host.host())));
    }
    if (host.address().empty()) {
      return absl::FailedPreconditionError(
          fmt::format("the agent of node {} does not say where it listens", host.node()));
    }
  }
  return absl::OkStatus();
}

// For mpirun, and for the shim.
absl::Status MpiRun::WriteHostFiles() const {
  const StartGeneration& start = options_.start;
  std::ofstream hosts(options_.folder + "/hosts");
  if (start.hosts_size() < 2) {
    hosts << "localhost slots=" << (start.oversubscribe() ? options_.slots : start.ranks()) << '\n';
  } else {
    std::ofstream agents(options_.folder + "/agents");
    for (const HostSlots& host : start.hosts()) {
      hosts << host.host() << " slots=" << host.slots() << '\n';
      agents << host.host() << ' ' << host.address() << '\n';
    }
    if (!agents.flush()) return absl::InternalError("cannot write " + options_.folder + "/agents");
  }
  if (!hosts.flush()) return absl::InternalError("cannot write " + options_.folder + "/hosts");
  return absl::OkStatus();
}

MpiRunResult MpiRun::Run() {
  absl::Status status = Check();
  if (!status.ok()) {
    return {.exit_code = kExitNotStarted, .first_failure = std::string(status.message())};
  }
  status = WriteHostFiles();
  if (!status.ok()) return {.exit_code = 1, .first_failure = std::string(status.message())};
  ChildProcess child;
  child.environment = Environment();
  child.arguments = Arguments();
  child.death_signal = SIGTERM;  // lets mpirun take its ranks along
  const auto path = child.environment.find("PATH");
  child.program = FindProgram(options_.mpirun, path == child.environment.end() ? "" : path->second);
  if (child.program.empty()) {
    return {.exit_code = kExitNotStarted,
            .first_failure = fmt::format("{} was not found; install Open MPI (Debian: openmpi-bin)",
                                         options_.mpirun)};
  }
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return {.exit_code = 1, .first_failure = fmt::format("pipe: {}", strerror(errno))};
  }
  child.out = child.err = ends[1];
  const absl::StatusOr<pid_t> pid = StartChild(child);
  close(ends[1]);
  if (!pid.ok()) {
    close(ends[0]);
    return {.exit_code = 1, .first_failure = std::string(pid.status().message())};
  }
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  MpiRunResult result = Watch(*pid, ends[0]);
  close(ends[0]);
  result.clean = KillMarked(RunFolderMark(options_.folder), kKillLimit);
  ReapOrphans({options_.worker, options_.shim}, kReapLimit);
  return result;
}

MpiRunResult MpiRun::Watch(pid_t child, int output) {
  const StartGeneration& start = options_.start;
  RankLogs logs(fmt::format("{}/logs/generation-{}", start.run_dir(), start.generation()));
  if (const absl::Status status = logs.Open(); !status.ok()) {
    LogWarning("no logs of ranks: {}", std::string(status.message()));
  }
  int sent = 0;  // 1: SIGTERM, 2: SIGKILL
  absl::Time killed_at;
  int wait_status = 0;
  bool exited = false;
  char buffer[1 << 16];
  while (true) {
    pollfd poll_fd = {output, POLLIN, 0};
    poll(&poll_fd, 1, kPollMilliseconds);
    ssize_t bytes;
    bool ended = false;
    while ((bytes = read(output, buffer, sizeof(buffer))) > 0) {
      logs.Take(absl::string_view(buffer, bytes));
    }
    ended = bytes == 0;
    // What mpirun wrote last was read above only if it had exited before.
    if (exited) break;
    exited = waitpid(child, &wait_status, WNOHANG) == child;
    if (ended && !exited) absl::SleepFor(absl::Milliseconds(kPollMilliseconds));
    const absl::Time now = Clock::System().Now();
    int want = kill_.load();
    if (sent == 1 && now > killed_at + kTermGrace) want = 2;
    if (!exited && want > sent) {
      killed_at = now;
      sent = want;
      if (want == 2) {
        kill(-child, SIGKILL);
        for (const pid_t pid : FindMarked(RunFolderMark(options_.folder))) kill(pid, SIGKILL);
      } else {
        kill(child, SIGTERM);
      }
    }
  }
  logs.Finish();
  return ResultOf(wait_status, logs);
}

MpiRunResult MpiRun::ResultOf(int wait_status, const RankLogs& logs) const {
  const StartGeneration& start = options_.start;
  MpiRunResult result;
  result.exit_code = ExitCodeOf(wait_status);
  result.first_failure = logs.FirstFailure();
  result.failed_rank = logs.failed_rank();
  uint32_t first_rank = 0;
  for (const HostSlots& host : start.hosts()) {
    if (!result.failed_rank && host.host() == logs.lost_host()) {
      result.failed_rank = first_rank;
      result.first_failure = fmt::format("node {}, {}", host.node(), result.first_failure);
    }
    first_rank += host.slots();
  }
  if (result.exit_code != 0 && result.first_failure.empty()) {
    result.first_failure = fmt::format("mpirun {}", DescribeWaitStatus(wait_status));
    if (WIFEXITED(wait_status)) {
      result.first_failure += fmt::format("; see {}/logs/generation-{}/mpirun.log", start.run_dir(),
                                          start.generation());
    }
  }
  return result;
}

}  // namespace moesaic
