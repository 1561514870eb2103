#include "launcher/agent/mpi_run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/log.h"
#include "launcher/agent/marked_processes.h"
#include "launcher/agent/rank_logs.h"

namespace moesaic {
namespace {

constexpr int kMissing = 127;
constexpr char kMark[] = "MOESAIC_RUN_ID";
constexpr int kPollMilliseconds = 50;
// mpirun gives its ranks one second between SIGTERM and SIGKILL.
constexpr absl::Duration kTermGrace = absl::Seconds(3);
constexpr absl::Duration kKillLimit = absl::Seconds(10);
constexpr absl::Duration kReapLimit = absl::Seconds(2);

// What ranks may see of our environment. LD_* and OMPI_MCA_* can load code and stay out.
const std::set<std::string>& PassedOn() {
  static const std::set<std::string> names = {"PATH", "HOME", "USER",   "LOGNAME",
                                              "LANG", "TZ",   "LC_ALL", "MOESAIC_LOG_LEVEL",
                                              // Paths, for the worker to read.
                                              "MOESAIC_TLS_CA", "MOESAIC_TLS_CERT",
                                              "MOESAIC_TLS_KEY"};
  return names;
}

// Of an executable by name or path; empty when there is none.
std::string FindProgram(const std::string& name, const std::string& path) {
  if (name.find('/') != std::string::npos) return access(name.c_str(), X_OK) == 0 ? name : "";
  for (const std::string& folder : std::vector<std::string>(absl::StrSplit(path, ':'))) {
    const std::string candidate = folder + "/" + name;
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return "";
}

std::vector<char*> Pointers(std::vector<std::string>* strings) {
  std::vector<char*> pointers;
  for (std::string& text : *strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Only async-signal-safe calls between fork and exec.
pid_t Spawn(const std::string& program, std::vector<std::string> arguments,
            std::vector<std::string> environment, int output) {
  const std::vector<char*> argv = Pointers(&arguments);
  const std::vector<char*> envp = Pointers(&environment);
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    // SIGTERM lets mpirun take its ranks along.
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(kMissing);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    dup2(null, STDIN_FILENO);
    dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    execve(program.c_str(), argv.data(), envp.data());
    _exit(kMissing);
  }
  if (null >= 0) close(null);
  return child;
}

}  // namespace

std::map<std::string, std::string> MpiRun::Environment() const {
  std::map<std::string, std::string> passed;
  for (const auto& [name, value] : options_.environment) {
    if (PassedOn().contains(name)) passed[name] = value;
  }
  passed["MOESAIC_TOKEN"] = options_.start.token();
  passed["OMP_NUM_THREADS"] = std::to_string(options_.start.threads());
  passed[kMark] = options_.run_id;
  if (options_.start.allow_root() && geteuid() == 0) {
    passed["OMPI_ALLOW_RUN_AS_ROOT"] = "1";
    passed["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1";
  }
  return passed;
}

std::vector<std::string> MpiRun::Arguments() const {
  const StartGeneration& start = options_.start;
  std::vector<std::string> arguments = {options_.mpirun,
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
  mca("btl", "self,vader");
  mca("orte_tmpdir_base", options_.folder);
  mca("btl_vader_backing_directory", options_.folder);
  mca("odls_base_sigkill_timeout", "1");
  if (start.oversubscribe()) arguments.push_back("--oversubscribe");
  for (const auto& [name, value] : Environment()) {
    if (name.rfind("OMPI_", 0) != 0) arguments.insert(arguments.end(), {"-x", name});
  }
  arguments.insert(arguments.end(),
                   {options_.worker, "train", "--coordinator", options_.coordinator, "--job",
                    start.job(), "--generation", std::to_string(start.generation())});
  return arguments;
}

MpiRunResult MpiRun::Run() {
  const std::map<std::string, std::string> environment = Environment();
  const auto path = environment.find("PATH");
  const std::string program =
      FindProgram(options_.mpirun, path == environment.end() ? "" : path->second);
  if (program.empty()) {
    return {kMissing, fmt::format("{} was not found; install Open MPI (Debian: openmpi-bin)",
                                  options_.mpirun)};
  }
  if (access(options_.worker.c_str(), X_OK) != 0) {
    return {kMissing, fmt::format("the worker program {} was not found", options_.worker)};
  }
  if (geteuid() == 0 && !options_.start.allow_root()) {
    return {kMissing, "mpirun does not run as root; use another user, or launch.allow_root: true"};
  }
  std::set<std::string> hosts;
  for (const HostSlots& host : options_.start.hosts()) hosts.insert(host.host());
  if (hosts.size() > 1) {
    return {kMissing, "its nodes are on several hosts, and this build starts ranks on one only"};
  }
  std::ofstream(options_.folder + "/hosts")
      << "localhost slots="
      << (options_.start.oversubscribe() ? options_.slots : options_.start.ranks()) << '\n';

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {1, fmt::format("pipe: {}", strerror(errno))};
  std::vector<std::string> variables;
  for (const auto& [name, value] : environment) variables.push_back(name + "=" + value);
  const pid_t child = Spawn(program, Arguments(), std::move(variables), ends[1]);
  close(ends[1]);
  if (child < 0) {
    close(ends[0]);
    return {1, fmt::format("cannot start mpirun: {}", strerror(errno))};
  }
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  MpiRunResult result = Watch(child, ends[0]);
  close(ends[0]);
  result.clean = KillMarked(fmt::format("{}={}", kMark, options_.run_id), kKillLimit);
  ReapOrphans(std::filesystem::path(options_.worker).filename().string(), kReapLimit);
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
        for (const pid_t pid : FindMarked(fmt::format("{}={}", kMark, options_.run_id))) {
          kill(pid, SIGKILL);
        }
      } else {
        kill(child, SIGTERM);
      }
    }
  }
  logs.Finish();
  MpiRunResult result;
  result.first_failure = logs.FirstFailure();
  if (WIFEXITED(wait_status)) {
    result.exit_code = WEXITSTATUS(wait_status);
    if (result.exit_code != 0 && result.first_failure.empty()) {
      result.first_failure =
          fmt::format("mpirun exited with code {}; see {}/logs/generation-{}/mpirun.log",
                      result.exit_code, start.run_dir(), start.generation());
    }
  } else {
    result.exit_code = 128 + WTERMSIG(wait_status);
    if (result.first_failure.empty()) {
      result.first_failure = fmt::format("mpirun was killed by signal {} ({})",
                                         WTERMSIG(wait_status), strsignal(WTERMSIG(wait_status)));
    }
  }
  return result;
}

}  // namespace moesaic
