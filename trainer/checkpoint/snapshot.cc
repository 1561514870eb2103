#include "trainer/checkpoint/snapshot.h"

#include <unistd.h>

#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/snapshot_arena.h"
#include "trainer/checkpoint/tasks.h"

namespace moesaic {
namespace {

absl::StatusOr<SnapshotIndex> MakeIndex(const WorkerIdentity& worker, const TrainingState& state,
                                        std::span<const SnapshotObject> objects) {
  SnapshotIndex index;
  index.set_job(worker.job());
  index.set_generation(worker.generation());
  index.set_rank(worker.rank());
  *index.mutable_state() = state;
  for (const SnapshotObject& object : objects) {
    const std::optional<uint64_t> bytes =
        CheckedBytes(ELEMENT_F32, AsShape(object.box.length()));
    if (bytes != object.source.size_bytes()) {
      return absl::InvalidArgumentError(
          absl::StrCat("snapshot: ", ObjectLabel(object.kind, object.name), ": box ",
                       DescribeBox(object.box), " is not of ", object.source.size(), " floats"));
    }
    ArenaObject* added = index.add_objects();
    added->set_kind(object.kind);
    added->set_name(object.name);
    added->set_element(ELEMENT_F32);
    added->mutable_shape()->Assign(object.shape.begin(), object.shape.end());
    *added->mutable_box() = object.box;
    added->set_layer(object.layer);
    added->set_expert(object.expert);
  }
  return index;
}

}  // namespace

SnapshotTaker::SnapshotTaker(WorkerIdentity worker, std::string arena_path)
    : worker_(std::move(worker)), arena_path_(std::move(arena_path)) {}

std::string SnapshotTaker::BufferPath(int buffer) const {
  return absl::StrCat(arena_path_, ".", buffer);
}

void SnapshotTaker::Settle(uint64_t committed_step, uint64_t aborted_step) {
  if (!in_flight_) return;
  const InFlight snapshot = *in_flight_;
  if (committed_step >= snapshot.step) {
    // Its memory goes back now; a reader that still maps it keeps it until it is done.
    if (committed_buffer_) unlink(BufferPath(*committed_buffer_).c_str());
    committed_buffer_ = snapshot.buffer;
  } else if (aborted_step >= snapshot.step) {
    unlink(BufferPath(snapshot.buffer).c_str());
  } else {
    return;
  }
  in_flight_.reset();
}

absl::StatusOr<std::optional<SnapshotReport>> SnapshotTaker::Take(
    const TrainingState& state, std::span<const SnapshotObject> objects, int threads) {
  if (in_flight_) {
    ++skipped_;
    return std::optional<SnapshotReport>();
  }
  absl::StatusOr<SnapshotIndex> index = MakeIndex(worker_, state, objects);
  if (!index.ok()) return index.status();
  const int buffer = committed_buffer_ ? 1 - *committed_buffer_ : 0;
  absl::StatusOr<std::unique_ptr<SnapshotWriter>> writer =
      SnapshotWriter::Create(BufferPath(buffer), *std::move(index));
  if (!writer.ok()) return writer.status();
  absl::Status copied = RunTasks(static_cast<int>(objects.size()), threads, [&](int i) {
    const std::span<const float> source = objects[static_cast<size_t>(i)].source;
    std::memcpy((*writer)->object(i).data(), source.data(), source.size_bytes());
    return absl::OkStatus();
  });
  if (copied.ok()) copied = (*writer)->Finish();
  if (!copied.ok()) return copied;
  in_flight_ = InFlight{state.step(), buffer};

  SnapshotReport report;
  *report.mutable_worker() = worker_;
  report.set_step(state.step());
  report.set_buffer(static_cast<uint32_t>(buffer));
  for (const SnapshotObject& object : objects) {
    report.set_bytes(report.bytes() + object.source.size_bytes());
  }
  return std::optional<SnapshotReport>(std::move(report));
}

}  // namespace moesaic
