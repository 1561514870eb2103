#include "trainer/metrics/append_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace moesaic {
namespace {

absl::Status IoError(const std::string& path, const char* action, int error) {
  return absl::UnavailableError(
      absl::StrCat("[metrics] cannot ", action, " ", path, ": ", std::strerror(error)));
}

}  // namespace

absl::StatusOr<AppendFile> AppendFile::Open(const std::string& folder, const std::string& name) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return IoError(folder, "create", error.value());
  const std::string path = absl::StrCat(folder, "/", name);
  const int fd = open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return IoError(path, "open", errno);
  return AppendFile(Descriptor(fd), path);
}

bool AppendFile::EndsWithNewline() const {
  struct stat info;
  char last = '\n';
  if (fstat(file_.get(), &info) != 0 || info.st_size == 0) return true;
  return pread(file_.get(), &last, 1, info.st_size - 1) != 1 || last == '\n';
}

absl::Status AppendFile::Append(absl::string_view record) {
  const ssize_t written = write(file_.get(), record.data(), record.size());
  if (written < 0) return IoError(path_, "write", errno);
  if (static_cast<size_t>(written) != record.size()) return IoError(path_, "write all of", ENOSPC);
  return absl::OkStatus();
}

}  // namespace moesaic
