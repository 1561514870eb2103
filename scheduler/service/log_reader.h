// LogReader: serves ReadLog, the logs that agents write below the run folders of jobs. One thread
// reads for all streams, a piece at a time, so that neither a slow disk nor a slow client holds up
// gRPC. Nothing but <run.dir>/logs/generation-<g>/{rank-<r>,mpirun}.log can be read: no symbolic
// link is followed, and only regular files are opened.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/service/coordinator.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

// Thread-safe.
class LogReader {
 public:
  // `core` must outlive it.
  explicit LogReader(CoordinatorCore* core);
  ~LogReader();

  // Owned by gRPC. Ends with NotFound when there is no such job or log, with OK at the end of the
  // log (of a generation that is over, when it is followed).
  grpc::ServerWriteReactor<LogBytes>* Open(const ReadLogRequest& request);
  // Ends all streams, and refuses what comes.
  void Shutdown();

 private:
  class Stream;
  struct Piece {
    std::string data;
    bool end = false;  // nothing will come after it
  };

  void Run();
  // A piece, or the end, or nothing yet.
  static void Serve(Stream* stream, const CoordinatorCore& core);
  static absl::StatusOr<Piece> Read(Stream* stream, const CoordinatorCore& core);
  void Woken();

  CoordinatorCore* const core_;
  Mutex mutex_;
  CondVar changed_;
  std::vector<Stream*> streams_ ABSL_GUARDED_BY(mutex_);
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace moesaic
