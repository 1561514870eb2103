#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/descriptor.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {
namespace {

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT:
      return absl::StatusCode::kNotFound;
    case EEXIST:
    case ENOTEMPTY:
      return absl::StatusCode::kAlreadyExists;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      return absl::StatusCode::kResourceExhausted;
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;
    case EXDEV:
    case EMLINK:
    case EOPNOTSUPP:
    case ENOSYS:
      return absl::StatusCode::kUnimplemented;
    case ELOOP:
    case ENOTDIR:
    case EISDIR:
      return absl::StatusCode::kFailedPrecondition;
    default:
      return absl::StatusCode::kUnavailable;
  }
}

absl::Status SystemError(absl::string_view action, absl::string_view path, int error) {
  return absl::Status(CodeOf(error), absl::StrCat(action, " ", path, ": ", std::strerror(error)));
}

class PosixWritableFile : public WritableFile {
 public:
  PosixWritableFile(Descriptor fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  absl::Status Append(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t n = write(fd_.get(), bytes.data(), std::min<size_t>(bytes.size(), 1u << 30));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return SystemError("write", path_, errno);
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    if (fsync(fd_.get()) != 0) return SystemError("fsync", path_, errno);
    return absl::OkStatus();
  }

 private:
  Descriptor fd_;
  std::string path_;
};

class PosixReadableFile : public ReadableFile {
 public:
  PosixReadableFile(Descriptor fd, std::string path, uint64_t size)
      : fd_(std::move(fd)), path_(std::move(path)), size_(size) {}

  uint64_t size() const override { return size_; }

  absl::Status ReadAt(uint64_t offset, std::span<std::byte> bytes) const override {
    while (!bytes.empty()) {
      const ssize_t n = pread(fd_.get(), bytes.data(), std::min<size_t>(bytes.size(), 1u << 30),
                              static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return SystemError("read", path_, errno);
      if (n == 0) {
        return absl::OutOfRangeError(
            absl::StrCat("read ", path_, ": the file ends before byte ", offset + bytes.size()));
      }
      bytes = bytes.subspan(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return absl::OkStatus();
  }

 private:
  Descriptor fd_;
  std::string path_;
  uint64_t size_;
};

// renameat2 refuses flags on some network file systems; there the check and the rename are two
// steps, which is enough for a folder with one writer.
int RenameNoReplace(int from, const char* name, int to, const char* new_name) {
  constexpr unsigned kNoReplace = 1;
  if (syscall(SYS_renameat2, from, name, to, new_name, kNoReplace) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  if (faccessat(to, new_name, F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
    errno = EEXIST;
    return -1;
  }
  return renameat(from, name, to, new_name);
}

class PosixFolder : public Folder {
 public:
  PosixFolder(Descriptor fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  const std::string& path() const override { return path_; }

  absl::StatusOr<std::unique_ptr<Folder>> OpenFolder(const std::string& name) const override {
    if (absl::Status valid = ValidateName(name); !valid.ok()) return valid;
    Descriptor fd(openat(fd_.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (fd.get() < 0) return SystemError("open folder", Path(name), errno);
    return std::make_unique<PosixFolder>(std::move(fd), Path(name));
  }

  absl::Status MakeFolder(const std::string& name) override {
    if (absl::Status valid = ValidateName(name); !valid.ok()) return valid;
    if (mkdirat(fd_.get(), name.c_str(), 0700) != 0) {
      return SystemError("make folder", Path(name), errno);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& name) override {
    if (absl::Status valid = ValidateName(name); !valid.ok()) return valid;
    Descriptor fd(openat(fd_.get(), name.c_str(),
                         O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (fd.get() < 0) return SystemError("create", Path(name), errno);
    return std::make_unique<PosixWritableFile>(std::move(fd), Path(name));
  }

  absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const std::string& name) const override {
    if (absl::Status valid = ValidateName(name); !valid.ok()) return valid;
    // Without O_NONBLOCK a FIFO of that name would block the open.
    Descriptor fd(
        openat(fd_.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (fd.get() < 0) return SystemError("open", Path(name), errno);
    struct stat info {};
    if (fstat(fd.get(), &info) != 0) return SystemError("stat", Path(name), errno);
    if (!S_ISREG(info.st_mode)) {
      return absl::FailedPreconditionError(absl::StrCat(Path(name), " is not a regular file"));
    }
    return std::make_unique<PosixReadableFile>(std::move(fd), Path(name),
                                               static_cast<uint64_t>(info.st_size));
  }

  absl::StatusOr<std::vector<FolderEntry>> List() const override {
    Descriptor copy(openat(fd_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (copy.get() < 0) return SystemError("list", path_, errno);
    DIR* stream = fdopendir(copy.get());
    if (stream == nullptr) return SystemError("list", path_, errno);
    copy.Release();
    std::vector<FolderEntry> entries;
    errno = 0;
    while (const dirent* entry = readdir(stream)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") entries.push_back({name, KindOf(name)});
      errno = 0;
    }
    const int error = errno;
    closedir(stream);
    if (error != 0) return SystemError("list", path_, error);
    std::ranges::sort(entries, {}, &FolderEntry::name);
    return entries;
  }

  absl::Status Rename(const std::string& name, Folder* to, const std::string& new_name) override {
    if (absl::Status valid = ValidateName(name); !valid.ok()) return valid;
    if (absl::Status valid = ValidateName(new_name); !valid.ok()) return valid;
    auto* target = dynamic_cast<PosixFolder*>(to);
    if (target == nullptr) {
      return absl::InvalidArgumentError("rename: the folders are of different file systems");
    }
    if (RenameNoReplace(fd_.get(), name.c_str(), target->fd_.get(), new_name.c_str()) != 0) {
      return SystemError(absl::StrCat("rename ", Path(name), " to"), target->Path(new_name), errno);
    }
    return absl::OkStatus();
  }

  absl::Status Link(const std::string& name, Folder* to,
                    const std::string& new_name) const override {
    if (absl::Status valid = ValidateName(name); !valid.ok()) return valid;
    if (absl::Status valid = ValidateName(new_name); !valid.ok()) return valid;
    auto* target = dynamic_cast<PosixFolder*>(to);
    if (target == nullptr) {
      return absl::UnimplementedError("link: the folders are of different file systems");
    }
    if (linkat(fd_.get(), name.c_str(), target->fd_.get(), new_name.c_str(), 0) != 0) {
      return SystemError(absl::StrCat("link ", Path(name), " to"), target->Path(new_name), errno);
    }
    return absl::OkStatus();
  }

  absl::Status RemoveFile(const std::string& name) override { return Unlink(name, 0); }
  absl::Status RemoveFolder(const std::string& name) override {
    return Unlink(name, AT_REMOVEDIR);
  }

  absl::Status Sync() override {
    if (fsync(fd_.get()) != 0) return SystemError("fsync", path_, errno);
    return absl::OkStatus();
  }

 private:
  std::string Path(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

  EntryKind KindOf(const std::string& name) const {
    struct stat info {};
    if (fstatat(fd_.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) return EntryKind::kOther;
    if (S_ISDIR(info.st_mode)) return EntryKind::kFolder;
    return S_ISREG(info.st_mode) ? EntryKind::kFile : EntryKind::kOther;
  }

  absl::Status Unlink(const std::string& name, int flags) {
    if (absl::Status valid = ValidateName(name); !valid.ok()) return valid;
    if (unlinkat(fd_.get(), name.c_str(), flags) != 0) {
      return SystemError("remove", Path(name), errno);
    }
    return absl::OkStatus();
  }

  Descriptor fd_;
  std::string path_;
};

class PosixFileSystem : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<Folder>> OpenFolder(const std::string& path) override {
    Descriptor fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd.get() < 0) return SystemError("open folder", path, errno);
    return std::make_unique<PosixFolder>(std::move(fd), path);
  }

  absl::StatusOr<std::unique_ptr<Folder>> MakeFolders(const std::string& path) override {
    for (size_t end = path.find('/', 1); end != std::string::npos; end = path.find('/', end + 1)) {
      if (absl::Status made = Make(path.substr(0, end)); !made.ok()) return made;
    }
    if (absl::Status made = Make(path); !made.ok()) return made;
    return OpenFolder(path);
  }

 private:
  static absl::Status Make(const std::string& path) {
    if (mkdir(path.c_str(), 0700) != 0) {
      return errno == EEXIST ? absl::OkStatus() : SystemError("make folder", path, errno);
    }
    // The new name must be as durable as what will be committed below it.
    const size_t slash = path.find_last_of('/');
    const std::string parent = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    Descriptor fd(open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd.get() < 0 || fsync(fd.get()) != 0) return SystemError("fsync", parent, errno);
    return absl::OkStatus();
  }
};

}  // namespace

FileSystem& FileSystem::System() {
  static auto* const instance = new PosixFileSystem;
  return *instance;
}

}  // namespace moesaic
