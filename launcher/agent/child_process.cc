#include "launcher/agent/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_split.h"
#include "base/exit_codes.h"

namespace moesaic {
namespace {

std::vector<char*> Pointers(std::vector<std::string>* strings) {
  std::vector<char*> pointers;
  for (std::string& text : *strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Only async-signal-safe calls: this is between fork and exec.
[[noreturn]] void Become(const ChildProcess& child, int null, pid_t parent, char* const* argv,
                         char* const* envp) {
  setpgid(0, 0);
  if (child.death_signal != 0) prctl(PR_SET_PDEATHSIG, child.death_signal);
  if (getppid() != parent) _exit(kExitNotStarted);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int signal_number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGPIPE}) {
    signal(signal_number, SIG_DFL);
  }
  dup2(null, STDIN_FILENO);
  dup2(child.out, STDOUT_FILENO);
  dup2(child.err, STDERR_FILENO);
  execve(child.program.c_str(), argv, envp);
  _exit(kExitNotStarted);
}

}  // namespace

std::string FindProgram(const std::string& name, const std::string& path) {
  if (name.find('/') != std::string::npos) return access(name.c_str(), X_OK) == 0 ? name : "";
  for (const std::string& folder : std::vector<std::string>(absl::StrSplit(path, ':'))) {
    const std::string candidate = folder + "/" + name;
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return "";
}

absl::StatusOr<pid_t> StartChild(const ChildProcess& child) {
  std::vector<std::string> arguments = child.arguments;
  std::vector<std::string> variables;
  for (const auto& [name, value] : child.environment) variables.push_back(name + "=" + value);
  const std::vector<char*> argv = Pointers(&arguments);
  const std::vector<char*> envp = Pointers(&variables);
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) Become(child, null, parent, argv.data(), envp.data());
  const int error = errno;
  if (null >= 0) close(null);
  if (pid < 0) {
    return absl::InternalError(fmt::format("cannot start {}: {}", child.program, strerror(error)));
  }
  return pid;
}

std::string DescribeWaitStatus(int wait_status) {
  if (WIFEXITED(wait_status)) return fmt::format("exited with code {}", WEXITSTATUS(wait_status));
  return fmt::format("was killed by signal {} ({})", WTERMSIG(wait_status),
                     strsignal(WTERMSIG(wait_status)));
}

int ExitCodeOf(int wait_status) {
  return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
}

}  // namespace moesaic
