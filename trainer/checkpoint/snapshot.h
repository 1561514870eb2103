// SnapshotTaker: the worker's part of a checkpoint. At a step boundary it copies its objects into a
// snapshot arena; the agent does the rest from there.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"
#include "proto/coordinator.pb.h"
#include "trainer/checkpoint/format/snapshot_arena.h"

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

// Of the two buffers one holds the newest snapshot that every rank has copied. The other holds one
// only while that is in flight or a reader still needs it; its memory stays, because to fault in
// new pages takes longer than to copy. Thread-compatible.
class SnapshotTaker {
 public:
  // `arena_path` as RankEntry gives it. Buffers that are there are taken to be free.
  // `ranks`: of the generation.
  SnapshotTaker(WorkerIdentity worker, uint32_t ranks, std::string arena_path);

  // What the newest Control says. Frees the buffers of steps that are neither kept nor newer than
  // both memory_step and aborted_snapshot_step.
  void Settle(const Control& control);

  // Whether there is no buffer for another snapshot.
  bool full() const { return buffers_[0].step.has_value() && buffers_[1].step.has_value(); }
  // Snapshots that Take did not take because there was no buffer.
  uint64_t skipped() const { return skipped_; }

  // Copies the objects on `threads` threads and finishes the arena; the report is to be sent to the
  // coordinator; rank 0's has the state. Nothing when there is no buffer. ResourceExhausted when
  // the arena's file system is full: training goes on without this snapshot. InvalidArgument: a box
  // that does not fit its shape or source.
  absl::StatusOr<std::optional<SnapshotReport>> Take(const TrainingState& state,
                                                     std::span<const SnapshotObject> objects,
                                                     int threads);

 private:
  struct Buffer {
    std::unique_ptr<SnapshotWriter> file;  // null before its first snapshot
    std::optional<uint64_t> step;          // that it holds; nothing: it is free
  };

  // Begins a snapshot in a buffer.
  absl::Status Begin(int buffer, SnapshotIndex index);

  WorkerIdentity worker_;
  uint32_t ranks_;
  std::string arena_path_;
  std::array<Buffer, 2> buffers_;
  uint64_t skipped_ = 0;
};

}  // namespace moesaic
