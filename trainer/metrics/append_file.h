// AppendFile: a file that grows by whole records.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/descriptor.h"

namespace moesaic {

// Thread-compatible.
class AppendFile {
 public:
  // Opens or makes `folder`/`name`, with all folders on the way. Unavailable, naming the path.
  static absl::StatusOr<AppendFile> Open(const std::string& folder, const std::string& name);

  // Whether the file is empty or its last byte is a newline.
  bool EndsWithNewline() const;
  // One write call.
  absl::Status Append(absl::string_view record);

 private:
  AppendFile(Descriptor file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}

  Descriptor file_;
  std::string path_;
};

}  // namespace moesaic
