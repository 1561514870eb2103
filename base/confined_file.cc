#include "base/confined_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/str_split.h"
#include "base/descriptor.h"
#include "base/foreign_text.h"

namespace moesaic {
namespace {

// O_NONBLOCK: a FIFO would block the open.
constexpr int kFile = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
constexpr int kFolder = O_RDONLY | O_DIRECTORY | O_CLOEXEC;

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT: return absl::StatusCode::kNotFound;
    case ELOOP:
    case ENOTDIR:
    case EXDEV:
    case ENXIO: return absl::StatusCode::kFailedPrecondition;
    case EACCES:
    case EPERM: return absl::StatusCode::kPermissionDenied;
    default: return absl::StatusCode::kUnavailable;
  }
}

absl::Status Error(const std::string& root, const std::string& path, int error) {
  return absl::Status(CodeOf(error), fmt::format("cannot open {} below {}: {}",
                                                 EscapeControls(path), root, strerror(error)));
}

absl::Status CheckParts(const std::string& root, const std::string& path) {
  const std::vector<std::string> parts = absl::StrSplit(path, '/');
  const bool plain = path.find('\0') == std::string::npos &&
                     std::none_of(parts.begin(), parts.end(), [](const std::string& part) {
                       return part.empty() || part == "." || part == "..";
                     });
  if (plain) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is no path below {}", EscapeControls(path), root));
}

absl::StatusOr<int> CheckedFile(Descriptor* file, const std::string& root,
                                const std::string& path) {
  struct stat info = {};
  if (fstat(file->get(), &info) != 0) return Error(root, path, errno);
  if (S_ISREG(info.st_mode)) return file->Release();
  return absl::FailedPreconditionError(
      fmt::format("{} below {} is not a regular file", EscapeControls(path), root));
}

}  // namespace

absl::StatusOr<int> OpenConfined(const std::string& root, const std::string& path) {
  if (const absl::Status parts = CheckParts(root, path); !parts.ok()) return parts;
  const Descriptor folder(open(root.c_str(), kFolder));
  if (folder.get() < 0) return Error(root, ".", errno);
  open_how how = {};
  how.flags = kFile;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  Descriptor file(static_cast<int>(
      syscall(SYS_openat2, folder.get(), path.c_str(), &how, sizeof(how))));
  // EPERM: seccomp filters of containers that do not know the call.
  if (file.get() < 0 && (errno == ENOSYS || errno == EPERM)) return OpenConfinedByParts(root, path);
  if (file.get() < 0) return Error(root, path, errno);
  return CheckedFile(&file, root, path);
}

absl::StatusOr<int> OpenConfinedByParts(const std::string& root, const std::string& path) {
  if (const absl::Status parts = CheckParts(root, path); !parts.ok()) return parts;
  Descriptor folder(open(root.c_str(), kFolder));
  if (folder.get() < 0) return Error(root, ".", errno);
  std::vector<std::string> parts = absl::StrSplit(path, '/');
  const std::string name = parts.back();
  parts.pop_back();
  for (const std::string& part : parts) {
    folder = Descriptor(openat(folder.get(), part.c_str(), kFolder | O_NOFOLLOW));
    if (folder.get() < 0) return Error(root, path, errno);
  }
  Descriptor file(openat(folder.get(), name.c_str(), kFile));
  if (file.get() < 0) return Error(root, path, errno);
  return CheckedFile(&file, root, path);
}

}  // namespace moesaic
