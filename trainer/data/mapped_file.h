// MappedFile: a file's bytes, mapped read-only, so that it may be larger than memory.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace moesaic {

// Movable. Immutable, so thread-safe. The bytes stay mapped when the file is renamed or unlinked;
// a file that another process truncates meanwhile ends this one by SIGBUS.
class MappedFile {
 public:
  // NotFound when there is no such file; InvalidArgument when it is not a regular one; else the
  // system's error, as absl::ErrnoToStatus maps it.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}

  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace moesaic
