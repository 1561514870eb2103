// A library to preload (LD_PRELOAD) into a program under test, which then ends itself with SIGKILL
// at one point of its life. The program is the one that is shipped: nothing in it knows of this.
//
// A point is the moment before or after a call by which the program touches what outlives it. There
// are those of files (made, written, synced, renamed, linked, removed) and those of messages over
// TCP (before and after one is sent, after one has come); each kind is numbered from 1, from the
// first call that names a file of the save in question.
//
//   KILL_POINT_FOLDER  where "points" is written, a line a point; and "fired", once it has ended
//   KILL_POINT_PATHS   a:b: only files whose path has one of these in it count
//   KILL_POINT_FROM    a:b: points count from the first call whose path has one of these in it
//   KILL_POINT_AT      "file-12" or "message-3": the point to end at; or none
//
// A program that finds "fired" lives on: so it can be started again as it was.
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace {

template <typename Function>
Function* Real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

std::vector<std::string> ListFrom(const char* variable) {
  std::vector<std::string> words;
  const char* text = getenv(variable);
  for (std::string_view rest = text == nullptr ? "" : text; !rest.empty();) {
    const size_t end = std::min(rest.find(':'), rest.size());
    words.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return words;
}

bool HasOneOf(const std::string& path, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    if (path.find(word) != std::string::npos) return true;
  }
  return false;
}

class KillPoints {
 public:
  static KillPoints& Get() {
    static KillPoints* points = new KillPoints();
    return *points;
  }

  // Whether calls on this path count; the first of the save starts the count.
  bool Counts(const std::string& path) {
    if (!armed_ || !HasOneOf(path, paths_)) return false;
    if (!counting_ && HasOneOf(path, from_)) counting_ = true;
    return counting_;
  }
  bool counting() const { return counting_; }

  void PassFile(const char* moment, const char* call, const std::string& path) {
    Pass("file-" + std::to_string(++files_), std::string(moment) + " " + call + " " + path);
  }
  void PassMessage(const char* moment, const char* call) {
    Pass("message-" + std::to_string(++messages_), std::string(moment) + " " + call);
  }

 private:
  KillPoints()
      : paths_(ListFrom("KILL_POINT_PATHS")),
        from_(ListFrom("KILL_POINT_FROM")) {
    const char* folder = getenv("KILL_POINT_FOLDER");
    const char* at = getenv("KILL_POINT_AT");
    if (folder == nullptr) return;
    folder_ = folder;
    at_ = at == nullptr ? "" : at;
    armed_ = access((folder_ + "/fired").c_str(), F_OK) != 0;
  }

  void Pass(const std::string& point, const std::string& what) const {
    const std::string line = point + " " + what + "\n";
    Append("points", line);
    if (point != at_) return;
    Append("fired", line);
    syscall(SYS_kill, getpid(), SIGKILL);
  }

  // Past the functions below.
  void Append(const char* name, const std::string& line) const {
    const std::string path = folder_ + "/" + name;
    const long fd = syscall(SYS_openat, AT_FDCWD, path.c_str(),
                            O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    syscall(SYS_write, fd, line.data(), line.size());
    syscall(SYS_close, fd);
  }

  std::vector<std::string> paths_;
  std::vector<std::string> from_;
  std::string folder_;
  std::string at_;
  bool armed_ = false;
  std::atomic<bool> counting_{false};
  std::atomic<int> files_{0};
  std::atomic<int> messages_{0};
};

std::string PathOf(int fd) {
  char path[PATH_MAX];
  const ssize_t length =
      readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof(path));
  return length < 0 ? "" : std::string(path, length);
}

std::string PathAt(int folder, const char* name) {
  if (name[0] == '/' || folder == AT_FDCWD) return name;
  return PathOf(folder) + "/" + name;
}

// Around a call on that path.
template <typename Call>
auto Around(const char* name, const std::string& path, Call call) {
  KillPoints& points = KillPoints::Get();
  if (!points.Counts(path)) return call();
  points.PassFile("before", name, path);
  const auto result = call();
  const int error = errno;
  points.PassFile("after", name, path);
  errno = error;
  return result;
}

bool IsTcp(int fd) {
  int domain = 0;
  socklen_t size = sizeof(domain);
  return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 &&
         (domain == AF_INET || domain == AF_INET6);
}

bool Makes(int flags) { return (flags & O_CREAT) != 0; }

}  // namespace

extern "C" {

ssize_t write(int fd, const void* bytes, size_t size) {
  static auto* const real = Real<decltype(write)>("write");
  return Around("write", PathOf(fd), [&] { return real(fd, bytes, size); });
}

ssize_t pwrite64(int fd, const void* bytes, size_t size, off64_t at) {
  static auto* const real = Real<decltype(pwrite64)>("pwrite64");
  return Around("pwrite", PathOf(fd), [&] { return real(fd, bytes, size, at); });
}

int ftruncate64(int fd, off64_t size) noexcept {
  static auto* const real = Real<int(int, off64_t)>("ftruncate64");
  return Around("ftruncate", PathOf(fd), [&] { return real(fd, size); });
}

int posix_fallocate(int fd, off_t from, off_t size) {
  static auto* const real = Real<decltype(posix_fallocate)>("posix_fallocate");
  return Around("fallocate", PathOf(fd), [&] { return real(fd, from, size); });
}

int fsync(int fd) {
  static auto* const real = Real<decltype(fsync)>("fsync");
  return Around("fsync", PathOf(fd), [&] { return real(fd); });
}

int fdatasync(int fd) {
  static auto* const real = Real<decltype(fdatasync)>("fdatasync");
  return Around("fdatasync", PathOf(fd), [&] { return real(fd); });
}

int openat(int folder, const char* name, int flags, ...) {
  static auto* const real = Real<int(int, const char*, int, mode_t)>("openat");
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = Makes(flags) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  if (!Makes(flags)) return real(folder, name, flags, mode);
  return Around("create", PathAt(folder, name), [&] { return real(folder, name, flags, mode); });
}

int open(const char* name, int flags, ...) {
  static auto* const real = Real<int(const char*, int, mode_t)>("open");
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = Makes(flags) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  if (!Makes(flags)) return real(name, flags, mode);
  return Around("create", name, [&] { return real(name, flags, mode); });
}

int mkdir(const char* name, mode_t mode) noexcept {
  static auto* const real = Real<int(const char*, mode_t)>("mkdir");
  return Around("mkdir", name, [&] { return real(name, mode); });
}

int mkdirat(int folder, const char* name, mode_t mode) noexcept {
  static auto* const real = Real<int(int, const char*, mode_t)>("mkdirat");
  return Around("mkdir", PathAt(folder, name), [&] { return real(folder, name, mode); });
}

int linkat(int from, const char* name, int to, const char* new_name, int flags) noexcept {
  static auto* const real = Real<int(int, const char*, int, const char*, int)>("linkat");
  return Around("link", PathAt(to, new_name),
                [&] { return real(from, name, to, new_name, flags); });
}

int rename(const char* name, const char* new_name) noexcept {
  static auto* const real = Real<int(const char*, const char*)>("rename");
  return Around("rename", new_name, [&] { return real(name, new_name); });
}

int renameat(int from, const char* name, int to, const char* new_name) noexcept {
  static auto* const real = Real<int(int, const char*, int, const char*)>("renameat");
  return Around("rename", PathAt(to, new_name), [&] { return real(from, name, to, new_name); });
}

int unlink(const char* name) noexcept {
  static auto* const real = Real<int(const char*)>("unlink");
  return Around("unlink", name, [&] { return real(name); });
}

int unlinkat(int folder, const char* name, int flags) noexcept {
  static auto* const real = Real<int(int, const char*, int)>("unlinkat");
  return Around("unlink", PathAt(folder, name), [&] { return real(folder, name, flags); });
}

ssize_t sendmsg(int fd, const msghdr* message, int flags) {
  static auto* const real = Real<decltype(sendmsg)>("sendmsg");
  KillPoints& points = KillPoints::Get();
  if (!points.counting() || !IsTcp(fd)) return real(fd, message, flags);
  points.PassMessage("before", "send");
  const ssize_t sent = real(fd, message, flags);
  const int error = errno;
  points.PassMessage("after", "send");
  errno = error;
  return sent;
}

ssize_t recvmsg(int fd, msghdr* message, int flags) {
  static auto* const real = Real<decltype(recvmsg)>("recvmsg");
  const ssize_t got = real(fd, message, flags);
  const int error = errno;
  KillPoints& points = KillPoints::Get();
  if (got > 0 && points.counting() && IsTcp(fd)) points.PassMessage("after", "receive");
  errno = error;
  return got;
}

// renameat2 has no function of its own in the program.
long syscall(long number, ...) noexcept {
  static auto* const real =
      Real<long(long, long, long, long, long, long, long)>("syscall");
  va_list rest;
  va_start(rest, number);
  long a[6];
  for (long& argument : a) argument = va_arg(rest, long);
  va_end(rest);
  const auto call = [&] { return real(number, a[0], a[1], a[2], a[3], a[4], a[5]); };
  if (number != SYS_renameat2) return call();
  const auto* new_name = reinterpret_cast<const char*>(a[3]);
  return Around("rename", PathAt(static_cast<int>(a[2]), new_name), call);
}

}  // extern "C"
