// SnapshotTaker: the worker's part of a checkpoint. At a step boundary it copies its objects into a
// snapshot arena; the agent does the rest from there.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"
#include "proto/coordinator.pb.h"

namespace moesaic {

// The part `box` of an fp32 object, row-major in `source`.
struct SnapshotObject {
  ObjectKind kind = MASTER;
  std::string name;
  std::vector<uint64_t> shape;  // of the whole object
  Box box;
  std::span<const float> source;
  int layer = -1;   // of an expert object, else -1
  int expert = -1;  // global id of an expert object, else -1
};

// There are two buffers, but the second exists only while a snapshot is in flight: one holds the
// newest committed snapshot, the other the one on its way. Thread-compatible.
class SnapshotTaker {
 public:
  // `arena_path` as RankEntry gives it. Buffers that are there are taken to be free.
  SnapshotTaker(WorkerIdentity worker, std::string arena_path);

  // What the newest Control says: the newest step that was committed and the newest one whose
  // snapshot was given up. Frees buffers.
  void Settle(uint64_t committed_step, uint64_t aborted_step);

  // Whether a snapshot is neither committed nor given up.
  bool in_flight() const { return in_flight_.has_value(); }
  // Snapshots that Take did not take because one was in flight.
  uint64_t skipped() const { return skipped_; }

  // Copies the objects on `threads` threads and finishes the arena; the report is to be sent to the
  // coordinator. Nothing when one is in flight. ResourceExhausted when the arena's file system is
  // full: training goes on without this snapshot. InvalidArgument: a box that does not fit its shape
  // or source.
  absl::StatusOr<std::optional<SnapshotReport>> Take(const TrainingState& state,
                                                     std::span<const SnapshotObject> objects,
                                                     int threads);

 private:
  struct InFlight {
    uint64_t step = 0;
    int buffer = 0;
  };

  std::string BufferPath(int buffer) const;

  WorkerIdentity worker_;
  std::string arena_path_;
  std::optional<InFlight> in_flight_;
  std::optional<int> committed_buffer_;
  uint64_t skipped_ = 0;
};

}  // namespace moesaic
