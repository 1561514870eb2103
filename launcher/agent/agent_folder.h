// AgentFolder: the one folder in tmpfs that an agent owns. In it are the snapshots of its ranks
// (<folder>/<job>/r<rank>.<buffer>) and the temporary files of its generations
// (<folder>/+g<number>). It goes with the agent; what a killed agent left, processes too, is
// removed by the next one.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moesaic {

// Thread-safe.
class AgentFolder {
 public:
  // Makes "<parent>/moesaic-<uid>-<random>" (0700) and removes those of agents of this user that
  // have died.
  static absl::StatusOr<std::unique_ptr<AgentFolder>> Create(const std::string& parent);
  // Removes it with all that is in it.
  ~AgentFolder();
  AgentFolder(const AgentFolder&) = delete;
  AgentFolder& operator=(const AgentFolder&) = delete;

  const std::string& path() const { return path_; }
  // Makes (0700) and removes a folder below it. `name` must be one plain name.
  absl::StatusOr<std::string> Make(const std::string& name);
  absl::Status Remove(const std::string& name);

 private:
  AgentFolder(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}

  const std::string path_;
  const int lock_;  // held while the agent lives; the kernel lets go of it when it dies
};

}  // namespace moesaic
