#include "trainer/checkpoint/snapshot.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/tasks.h"

namespace moesaic {
namespace {

absl::StatusOr<SnapshotIndex> MakeIndex(const WorkerIdentity& worker, uint32_t ranks,
                                        const TrainingState& state,
                                        std::span<const SnapshotObject> objects) {
  SnapshotIndex index;
  index.set_job(worker.job());
  index.set_generation(worker.generation());
  index.set_rank(worker.rank());
  index.set_ranks(ranks);
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

// A chunk to copy.
struct Piece {
  int object = 0;
  uint64_t chunk = 0;
  std::span<const std::byte> bytes;
};

std::vector<Piece> PiecesOf(std::span<const SnapshotObject> objects) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < objects.size(); ++i) {
    const std::span<const std::byte> bytes = std::as_bytes(objects[i].source);
    for (uint64_t at = 0; at < bytes.size(); at += kSnapshotChunk) {
      pieces.push_back({static_cast<int>(i), at / kSnapshotChunk,
                        bytes.subspan(at, std::min<uint64_t>(kSnapshotChunk, bytes.size() - at))});
    }
  }
  return pieces;
}

}  // namespace

SnapshotTaker::SnapshotTaker(WorkerIdentity worker, uint32_t ranks, std::string arena_path)
    : worker_(std::move(worker)), ranks_(ranks), arena_path_(std::move(arena_path)) {}

void SnapshotTaker::Settle(const Control& control) {
  const uint64_t settled = std::max(control.memory_step(), control.aborted_snapshot_step());
  for (Buffer& buffer : buffers_) {
    if (!buffer.step || *buffer.step > settled) continue;
    if (std::ranges::count(control.kept_steps(), *buffer.step) > 0) continue;
    buffer.file->Clear();
    buffer.step.reset();
  }
}

absl::Status SnapshotTaker::Begin(int buffer, SnapshotIndex index) {
  std::unique_ptr<SnapshotWriter>& file = buffers_[static_cast<size_t>(buffer)].file;
  if (file != nullptr) return file->Begin(std::move(index));
  auto created = SnapshotWriter::Create(absl::StrCat(arena_path_, ".", buffer), std::move(index));
  if (created.ok()) file = *std::move(created);
  return created.status();
}

absl::StatusOr<std::optional<SnapshotReport>> SnapshotTaker::Take(
    const TrainingState& state, std::span<const SnapshotObject> objects, int threads) {
  if (full()) {
    ++skipped_;
    return std::optional<SnapshotReport>();
  }
  absl::StatusOr<SnapshotIndex> index = MakeIndex(worker_, ranks_, state, objects);
  if (!index.ok()) return index.status();
  const int buffer = buffers_[0].step ? 1 : 0;
  if (absl::Status begun = Begin(buffer, *std::move(index)); !begun.ok()) return begun;
  SnapshotWriter* const writer = buffers_[static_cast<size_t>(buffer)].file.get();
  const std::vector<Piece> pieces = PiecesOf(objects);
  absl::Status copied = RunTasks(static_cast<int>(pieces.size()), threads, [&](int i) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    writer->CopyChunk(piece.object, piece.chunk, piece.bytes);
    return absl::OkStatus();
  });
  if (copied.ok()) copied = writer->Finish();
  if (!copied.ok()) return copied;
  buffers_[static_cast<size_t>(buffer)].step = state.step();

  SnapshotReport report;
  *report.mutable_worker() = worker_;
  report.set_step(state.step());
  report.set_buffer(static_cast<uint32_t>(buffer));
  if (worker_.rank() == 0) *report.mutable_state() = state;
  for (const SnapshotObject& object : objects) {
    report.set_bytes(report.bytes() + object.source.size_bytes());
  }
  return std::optional<SnapshotReport>(std::move(report));
}

}  // namespace moesaic
