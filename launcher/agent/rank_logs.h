// RankLogs: takes what mpirun --tag-output writes apart into a log a rank, and remembers enough to
// say in words what failed first.
#pragma once

#include <deque>
#include <fstream>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace moesaic {

// Thread-compatible.
class RankLogs {
 public:
  // Files go to `folder`: rank-<r>.log, and mpirun.log for what mpirun says itself.
  explicit RankLogs(std::string folder) : folder_(std::move(folder)) {}

  // Makes the folder.
  absl::Status Open();
  // The next bytes of mpirun's output.
  void Take(absl::string_view bytes);
  // The rest, after the last bytes.
  void Finish();
  // "rank 1 was killed by signal 9 (Killed); its last lines: ...", from mpirun's own words; empty
  // when mpirun said nothing of a rank.
  std::string FirstFailure() const;
  // That failed first, if mpirun named one.
  std::optional<uint32_t> failed_rank() const { return failed_rank_; }
  // That mpirun lost its daemon on, or could not start it on; empty: none.
  const std::string& lost_host() const { return lost_host_; }

 private:
  void TakeLine(const std::string& line);
  void WriteLine(int rank, const std::string& text);
  void TakeMpirunLine(const std::string& line);
  std::string LastLines(int rank) const;

  const std::string folder_;
  std::string partial_;
  std::map<int, std::string> pending_;  // begun lines, by rank
  std::map<int, std::ofstream> files_;  // -1: mpirun
  std::map<int, std::deque<std::string>> last_;
  std::optional<uint32_t> failed_rank_;
  std::string lost_host_;
  std::string failure_;
};

}  // namespace moesaic
