#include "launcher/agent/agent_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/time/time.h"
#include "base/log.h"
#include "launcher/agent/marked_processes.h"
#include "launcher/agent/rank_environment.h"

namespace moesaic {
namespace {

constexpr absl::Duration kKillLimit = absl::Seconds(10);
constexpr char kLockName[] = "owner.lock";

std::string Prefix() { return fmt::format("moesaic-{}-", getuid()); }

// -1 when another process holds it.
int LockFolder(const std::string& path) {
  const int fd =
      open((path + "/" + kLockName).c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  if (fd >= 0) close(fd);
  return -1;
}

void SweepDead(const std::string& parent) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(parent, error)) {
    const std::string path = entry.path().string();
    struct stat info;
    if (entry.path().filename().string().rfind(Prefix(), 0) != 0) continue;
    if (lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != getuid())
      continue;
    const int lock = LockFolder(path);
    if (lock < 0) continue;
    LogInfo("removing {}, left by an agent that died", path);
    if (!KillMarked(RunFolderMark(path), kKillLimit)) {
      LogWarning("processes of an agent that died cannot be killed");
    }
    std::filesystem::remove_all(path, error);
    close(lock);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<AgentFolder>> AgentFolder::Create(const std::string& parent) {
  SweepDead(parent);
  std::string path = parent + "/" + Prefix() + "XXXXXX";
  if (mkdtemp(path.data()) == nullptr) {
    return absl::InternalError(
        fmt::format("cannot make a folder in {}: {}", parent, strerror(errno)));
  }
  const int lock = LockFolder(path);
  if (lock < 0)
    return absl::InternalError(fmt::format("cannot lock {}: {}", path, strerror(errno)));
  return std::unique_ptr<AgentFolder>(new AgentFolder(std::move(path), lock));
}

AgentFolder::~AgentFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
  if (error) LogWarning("{} stays: {}", path_, error.message());
  close(lock_);
}

absl::StatusOr<std::string> AgentFolder::Make(const std::string& name) {
  if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos) {
    return absl::InvalidArgumentError(fmt::format("not a plain name: {}", name));
  }
  std::string path = path_ + "/" + name;
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::InternalError(fmt::format("cannot make {}: {}", path, strerror(errno)));
  }
  return path;
}

absl::Status AgentFolder::Remove(const std::string& name) {
  if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos) {
    return absl::InvalidArgumentError(fmt::format("not a plain name: {}", name));
  }
  std::error_code error;
  std::filesystem::remove_all(path_ + "/" + name, error);
  return error ? absl::InternalError(fmt::format("{}/{} stays: {}", path_, name, error.message()))
               : absl::OkStatus();
}

}  // namespace moesaic
