// Starting a program as a child in a process group of its own, and nothing of ours with it.
#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace moesaic {

// Path of an executable, by name (in the folders of `path`, as PATH has them) or by path. Empty:
// there is none.
std::string FindProgram(const std::string& name, const std::string& path);

struct ChildProcess {
  std::string program;                 // path
  std::vector<std::string> arguments;  // with argv[0]
  std::map<std::string, std::string> environment;
  int out = -1;  // stay the caller's
  int err = -1;
  int death_signal = 0;  // when the thread that started it ends
};

absl::StatusOr<pid_t> StartChild(const ChildProcess& child);

// In words: "exited with code 3", "was killed by signal 9 (Killed)".
std::string DescribeWaitStatus(int wait_status);
// 128 + signal.
int ExitCodeOf(int wait_status);

}  // namespace moesaic
