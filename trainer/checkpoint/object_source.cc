#include "trainer/checkpoint/object_source.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

constexpr uint64_t kPieceBytes = 4 << 20;

class StepObjects : public ObjectSource {
 public:
  StepObjects(const Folder& step, const Manifest& manifest)
      : step_(step), manifest_(manifest), name_(step.path()) {
    for (const StoredObject& object : manifest.objects()) {
      for (const Shard& shard : object.shards()) {
        parts_.push_back({object.kind(), object.name(), object.element(),
                          {object.shape().begin(), object.shape().end()}, shard.box(),
                          shard.bytes()});
        shards_.push_back(&shard);
      }
    }
  }

  const std::string& name() const override { return name_; }
  const TrainingState& state() const override { return manifest_.state(); }
  std::span<const StoredPart> parts() const override { return parts_; }

  // The shard whole: there is one checksum of it.
  absl::Status Read(int part, uint64_t, uint64_t, const Sink& sink) const override {
    const Shard& shard = *shards_[static_cast<size_t>(part)];
    const std::string& file = manifest_.files(static_cast<int>(shard.file())).name();
    const absl::Status status = ReadShard(shard, file, sink);
    if (status.ok()) return status;
    const StoredPart& stored = parts_[static_cast<size_t>(part)];
    // A file that is missing or short is damage.
    const bool damage = absl::IsNotFound(status) || absl::IsOutOfRange(status);
    return absl::Status(damage ? absl::StatusCode::kDataLoss : status.code(),
                        absl::StrCat(name_, "/", file, ": object ",
                                     ObjectLabel(stored.kind, stored.name), " ",
                                     DescribeBox(stored.box), ": ", status.message()));
  }

 private:
  absl::Status ReadShard(const Shard& shard, const std::string& name, const Sink& sink) const {
    const auto file = step_.Open(name);
    if (!file.ok()) return file.status();
    std::vector<std::byte> buffer(std::min(kPieceBytes, shard.bytes()));
    Xxh3Stream hash;
    for (uint64_t at = 0; at < shard.bytes(); at += kPieceBytes) {
      const auto piece = std::span(buffer).first(std::min(kPieceBytes, shard.bytes() - at));
      absl::Status got = (*file)->ReadAt(shard.begin() + at, piece);
      if (!got.ok()) return got;
      hash.Update(piece);
      sink(at, piece);
    }
    if (hash.Digest() == shard.xxh3()) return absl::OkStatus();
    return absl::DataLossError("the bytes do not match their checksum");
  }

  const Folder& step_;
  const Manifest& manifest_;
  const std::string name_;
  std::vector<StoredPart> parts_;
  std::vector<const Shard*> shards_;
};

std::vector<StoredPart> PartsOf(const SnapshotIndex& index) {
  std::vector<StoredPart> parts;
  for (const ArenaObject& object : index.objects()) {
    parts.push_back({object.kind(), object.name(), object.element(),
                     {object.shape().begin(), object.shape().end()}, object.box(),
                     object.bytes()});
  }
  return parts;
}

absl::Status CheckIdentity(const SnapshotIndex& index, const SnapshotRef& wanted,
                           const std::string& name) {
  if (index.job() == wanted.job() && index.generation() == wanted.generation() &&
      index.state().step() == wanted.step() && index.rank() == wanted.rank()) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(
      name, " is now of rank ", index.rank(), " at step ", index.state().step(), " in generation ",
      index.generation(), ", not of rank ", wanted.rank(), " at step ", wanted.step(),
      " in generation ", wanted.generation()));
}

class ArenaFile : public ObjectSource {
 public:
  ArenaFile(std::string name, std::unique_ptr<SnapshotReader> reader)
      : name_(std::move(name)), reader_(std::move(reader)), parts_(PartsOf(reader_->index())) {}

  const std::string& name() const override { return name_; }
  const TrainingState& state() const override { return reader_->index().state(); }
  std::span<const StoredPart> parts() const override { return parts_; }

  absl::Status Read(int part, uint64_t begin, uint64_t end, const Sink& sink) const override {
    const absl::Status status = reader_->Read(
        part, begin, end, [&sink](uint64_t at, std::span<const std::byte> bytes) {
          sink(at, bytes);
          return absl::OkStatus();
        });
    if (status.ok()) return status;
    return absl::Status(status.code(), absl::StrCat(name_, ": ", status.message()));
  }

 private:
  const std::string name_;
  const std::unique_ptr<SnapshotReader> reader_;
  const std::vector<StoredPart> parts_;
};

class PeerSnapshot : public ObjectSource {
 public:
  PeerSnapshot(std::string name, std::shared_ptr<SnapshotPeer> peer, SnapshotRef snapshot,
               SnapshotIndex index)
      : name_(std::move(name)),
        peer_(std::move(peer)),
        snapshot_(std::move(snapshot)),
        index_(std::move(index)),
        parts_(PartsOf(index_)) {}

  const std::string& name() const override { return name_; }
  const TrainingState& state() const override { return index_.state(); }
  std::span<const StoredPart> parts() const override { return parts_; }

  // Whole chunks, put together from the pieces that come, each checked against the index: what the
  // maker of the snapshot had in its memory is what arrives.
  absl::Status Read(int part, uint64_t begin, uint64_t end, const Sink& sink) const override {
    const ArenaObject& object = index_.objects(part);
    const uint64_t first = begin / kSnapshotChunk * kSnapshotChunk;
    const uint64_t last = std::min(SnapshotChunks(end) * kSnapshotChunk, object.bytes());
    ReadSnapshotRequest request;
    *request.mutable_snapshot() = snapshot_;
    ReadSnapshotRequest::Range* range = request.add_ranges();
    range->set_object(static_cast<uint32_t>(part));
    range->set_begin(first);
    range->set_bytes(last - first);
    uint64_t at = first;
    std::vector<std::byte> chunk;
    absl::Status status = peer_->Read(request, [&](std::span<const std::byte> bytes) {
      while (!bytes.empty()) {
        const uint64_t wanted = std::min(kSnapshotChunk, last - at) - chunk.size();
        if (wanted == 0) return absl::DataLossError("more bytes came than were asked for");
        const auto taken = bytes.first(std::min<uint64_t>(wanted, bytes.size()));
        chunk.insert(chunk.end(), taken.begin(), taken.end());
        bytes = bytes.subspan(taken.size());
        if (taken.size() < wanted) continue;
        absl::Status right = CheckChunk(object, at / kSnapshotChunk, chunk);
        if (!right.ok()) return right;
        sink(at, chunk);
        at += chunk.size();
        chunk.clear();
      }
      return absl::OkStatus();
    });
    if (status.ok() && at != last) status = absl::DataLossError("the bytes end too early");
    if (status.ok()) return status;
    return absl::Status(status.code(), absl::StrCat(name_, ": ", status.message()));
  }

 private:
  const std::string name_;
  const std::shared_ptr<SnapshotPeer> peer_;
  const SnapshotRef snapshot_;
  const SnapshotIndex index_;
  const std::vector<StoredPart> parts_;
};

}  // namespace

std::unique_ptr<ObjectSource> StepFolderSource(const Folder& step, const Manifest& manifest) {
  return std::make_unique<StepObjects>(step, manifest);
}

absl::StatusOr<std::unique_ptr<ObjectSource>> OpenArenaSource(const HeldSnapshot& held) {
  auto reader = SnapshotReader::Open(held.path());
  if (!reader.ok()) return reader.status();
  SnapshotRef wanted;
  wanted.set_job(held.job());
  wanted.set_generation(held.generation());
  wanted.set_step(held.step());
  wanted.set_rank(held.rank());
  const std::string name = absl::StrCat("snapshot ", held.path());
  if (absl::Status same = CheckIdentity((*reader)->index(), wanted, name); !same.ok()) return same;
  return std::make_unique<ArenaFile>(name, *std::move(reader));
}

absl::StatusOr<SnapshotIndex> FetchSnapshotIndex(SnapshotPeer* peer, const SnapshotRef& snapshot) {
  absl::StatusOr<SnapshotIndex> index = peer->Index(snapshot);
  absl::Status status = index.status();
  if (status.ok()) status = CheckSnapshotIndex(*index);
  if (status.ok()) status = CheckIdentity(*index, snapshot, "the index");
  if (!status.ok()) return status;
  return index;
}

std::unique_ptr<ObjectSource> PeerSource(std::shared_ptr<SnapshotPeer> peer,
                                         const SnapshotRef& snapshot, const std::string& node,
                                         SnapshotIndex index) {
  const std::string name =
      absl::StrCat("snapshot of rank ", snapshot.rank(), " in the memory of node ", node);
  return std::make_unique<PeerSnapshot>(name, std::move(peer), snapshot, std::move(index));
}

absl::StatusOr<std::unique_ptr<ObjectSource>> OpenPeerSource(std::shared_ptr<SnapshotPeer> peer,
                                                             const SnapshotRef& snapshot,
                                                             const std::string& node) {
  absl::StatusOr<SnapshotIndex> index = FetchSnapshotIndex(peer.get(), snapshot);
  if (!index.ok()) {
    return absl::Status(index.status().code(),
                        absl::StrCat("snapshot of rank ", snapshot.rank(),
                                     " in the memory of node ", node, ": ",
                                     index.status().message()));
  }
  return PeerSource(std::move(peer), snapshot, node, *std::move(index));
}

}  // namespace moesaic
