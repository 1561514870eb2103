// FileSystem: the few calls of the operating system that checkpoints use, as an interface, so that
// tests can cut the power or fill the disk between any two of them.
//
// Every name is one component of a path: empty, ".", "..", and names with '/' or NUL are refused
// with InvalidArgument. Symbolic links are not followed. Errors name the path and the system's
// words: NotFound (ENOENT), AlreadyExists (EEXIST, ENOTEMPTY), ResourceExhausted (ENOSPC, EDQUOT,
// ENOMEM, EMFILE), PermissionDenied (EACCES, EPERM, EROFS), FailedPrecondition (ELOOP, ENOTDIR,
// EISDIR, not a regular file), Unimplemented (EXDEV, EMLINK, EOPNOTSUPP, ENOSYS), Unavailable (any
// other).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace moesaic {

// Thread-compatible. Closed when destroyed.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  // Writes all the bytes at the end.
  virtual absl::Status Append(std::span<const std::byte> bytes) = 0;
  // Returns when the bytes are on stable storage. The name is so only after Folder::Sync.
  virtual absl::Status Sync() = 0;
};

// Thread-safe.
class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual uint64_t size() const = 0;
  // Fills all of `bytes` from `offset`. OutOfRange when the file ends before.
  virtual absl::Status ReadAt(uint64_t offset, std::span<std::byte> bytes) const = 0;
};

enum class EntryKind { kFile, kFolder, kOther };
struct FolderEntry {
  std::string name;
  EntryKind kind = EntryKind::kOther;
};

// An open folder: it stays the same one when it is renamed. Thread-safe.
class Folder {
 public:
  virtual ~Folder() = default;
  // Where it was when it was opened, for messages.
  virtual const std::string& path() const = 0;

  virtual absl::StatusOr<std::unique_ptr<Folder>> OpenFolder(const std::string& name) const = 0;
  // Mode 0700. AlreadyExists when the name is taken.
  virtual absl::Status MakeFolder(const std::string& name) = 0;

  // A new file of mode 0600. AlreadyExists when the name is taken.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& name) = 0;
  // Regular files only.
  virtual absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const std::string& name) const = 0;

  // By name.
  virtual absl::StatusOr<std::vector<FolderEntry>> List() const = 0;
  // Of a file or a folder; `to` is a folder of the same file system. AlreadyExists when `new_name`
  // is taken there.
  virtual absl::Status Rename(const std::string& name, Folder* to, const std::string& new_name) = 0;
  // A second name for the same file (a hard link). AlreadyExists as above; Unimplemented when there
  // are no links here, or not between these folders.
  virtual absl::Status Link(const std::string& name, Folder* to,
                            const std::string& new_name) const = 0;
  virtual absl::Status RemoveFile(const std::string& name) = 0;
  // An empty one.
  virtual absl::Status RemoveFolder(const std::string& name) = 0;
  // Returns when the names in the folder are on stable storage.
  virtual absl::Status Sync() = 0;
};

// Thread-safe.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // `path` is any path, relative to the current folder or absolute.
  virtual absl::StatusOr<std::unique_ptr<Folder>> OpenFolder(const std::string& path) = 0;
  // The same, after making it and its parents where they are missing.
  virtual absl::StatusOr<std::unique_ptr<Folder>> MakeFolders(const std::string& path) = 0;

  // The machine's; lives as long as the process.
  static FileSystem& System();
};

// InvalidArgument unless `name` is one component of a path.
absl::Status ValidateName(absl::string_view name);

// Makes the folder where it is missing, and opens it.
absl::StatusOr<std::unique_ptr<Folder>> OpenOrMakeFolder(Folder* parent, const std::string& name);

// The folder at `path`, which starts with `root.path()`, opened name by name below `root`: no part
// of it may be a symbolic link. InvalidArgument when it does not start so or has a part such as
// "..".
absl::StatusOr<std::unique_ptr<Folder>> OpenBelow(const Folder& root, absl::string_view path);

// Removes a folder and all in it. A name that is not there is no error.
absl::Status RemoveTree(Folder* parent, const std::string& name);

// The whole file. ResourceExhausted when it is larger than `limit` bytes.
absl::StatusOr<std::string> ReadWholeFile(const Folder& folder, const std::string& name,
                                          uint64_t limit);

}  // namespace moesaic
