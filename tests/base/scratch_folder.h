// A folder that lives as long as the object.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace moesaic {

class ScratchFolder {
 public:
  // `within`: an existing folder; empty: the one for temporary files.
  explicit ScratchFolder(const std::filesystem::path& within = {}) {
    const auto parent = within.empty() ? std::filesystem::temp_directory_path() : within;
    path_ = (parent / "moesaic-test-XXXXXX").string();
    if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("cannot make " + path_);
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace moesaic
