// LogTail: the log of one rank of a job, line by line, over breaks of the connection and, when it
// is followed, over generations until the job has ended.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "launcher/verbs/cluster_client.h"

namespace moesaic {

struct LogTailOptions {
  std::string job;
  std::optional<uint32_t> rank;  // none: mpirun's own
  uint64_t generation = 0;       // 0: the newest
  // Follow `generation`, or, when that is 0, every generation from the newest on.
  bool follow = false;
};

// Thread-compatible.
class LogTail {
 public:
  using OnLine = std::function<void(uint64_t generation, absl::string_view line)>;
  using OnTrouble = std::function<void(const absl::Status&)>;

  // `on_trouble` hears of a coordinator that does not answer for a while; it is tried again.
  LogTail(ClusterClient* client, LogTailOptions options, OnLine on_line, OnTrouble on_trouble)
      : client_(client),
        options_(std::move(options)),
        on_line_(std::move(on_line)),
        on_trouble_(std::move(on_trouble)) {}

  // OK at the end of the log. NotFound: no such job, generation or log. Unavailable: the
  // coordinator was not reached, and the log is not followed.
  absl::Status Run();

 private:
  absl::Status ReadStream();
  // Whether there is more to come: moves on to the next generation when the one at hand is over.
  absl::StatusOr<bool> More(const absl::Status& ended);
  void Take(const LogBytes& piece);
  void FlushLine();

  ClusterClient* const client_;
  const LogTailOptions options_;
  const OnLine on_line_;
  const OnTrouble on_trouble_;
  uint64_t generation_ = 0;  // being read; 0: not known yet
  uint64_t offset_ = 0;
  std::string partial_;
  bool read_after_end_ = false;
};

}  // namespace moesaic
