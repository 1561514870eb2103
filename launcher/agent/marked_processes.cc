#include "launcher/agent/marked_processes.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "base/clock.h"

namespace moesaic {
namespace {

// Of a file of /proc; empty when its process ends meanwhile. A std::ifstream throws then.
std::string ReadAll(const std::filesystem::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return "";
  std::string text;
  char buffer[4096];
  ssize_t bytes;
  while ((bytes = read(fd, buffer, sizeof(buffer))) > 0) {
    text.append(buffer, static_cast<size_t>(bytes));
  }
  close(fd);
  return bytes < 0 ? "" : text;
}

template <typename Visit>
void ForEachProcess(const Visit& visit) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    int pid = 0;
    if (absl::SimpleAtoi(entry.path().filename().string(), &pid) && pid != getpid()) {
      visit(pid, entry.path());
    }
  }
}

}  // namespace

std::vector<pid_t> FindMarked(const std::string& variable) {
  std::vector<pid_t> found;
  ForEachProcess([&](pid_t pid, const std::filesystem::path& folder) {
    // Every entry of the environment ends with a 0.
    const std::string environment = '\0' + ReadAll(folder / "environ");
    if (environment.find('\0' + variable + '\0') != std::string::npos ||
        environment.find('\0' + variable + '/') != std::string::npos) {
      found.push_back(pid);
    }
  });
  return found;
}

bool KillMarked(const std::string& variable, absl::Duration limit) {
  const absl::Time deadline = Clock::System().Now() + limit;
  while (true) {
    const std::vector<pid_t> alive = FindMarked(variable);
    if (alive.empty()) return true;
    for (const pid_t pid : alive) kill(pid, SIGKILL);
    absl::SleepFor(absl::Milliseconds(10));
    for (const pid_t pid : alive) waitpid(pid, nullptr, WNOHANG);
    if (Clock::System().Now() > deadline) return false;
  }
}

void ReapOrphans(const std::vector<std::string>& programs, absl::Duration limit) {
  std::set<std::string> names;  // as the kernel cuts them
  for (const std::string& program : programs) {
    names.insert(std::filesystem::path(program).filename().string().substr(0, 15));
  }
  const absl::Time deadline = Clock::System().Now() + limit;
  bool any = true;
  while (any && Clock::System().Now() < deadline) {
    any = false;
    ForEachProcess([&](pid_t pid, const std::filesystem::path& folder) {
      const std::string stat = ReadAll(folder / "stat");  // pid (name) state ppid ...
      const size_t begin = stat.find('(');
      const size_t end = stat.rfind(") ");
      if (begin == std::string::npos || end == std::string::npos) return;
      if (!names.contains(stat.substr(begin + 1, end - begin - 1))) return;
      if (std::atoi(stat.c_str() + end + 4) != getpid()) return;
      any |= waitpid(pid, nullptr, WNOHANG) == 0;
    });
    if (any) absl::SleepFor(absl::Milliseconds(10));
  }
}

}  // namespace moesaic
