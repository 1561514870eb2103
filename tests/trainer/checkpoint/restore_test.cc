#include "trainer/checkpoint/restore.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>

#include "proto/job_spec.h"
#include "tests/base/scratch_folder.h"
#include "tests/trainer/checkpoint/boxes.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/snapshot_arena.h"
#include "trainer/checkpoint/snapshot.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The elements of a box of a whole object, row-major.
std::vector<float> Part(const std::vector<float>& whole, Shape shape, const Box& box) {
  std::vector<float> part(*CheckedElements(AsShape(box.length())));
  RunCursor cursor(WholeBox(shape), box);
  for (ElementRun run; cursor.Next(&run);) {
    for (uint64_t i = 0; i < run.count; ++i) part[run.target + i] = whole[run.source + i];
  }
  return part;
}

class RestoreTest : public ::testing::Test {
 protected:
  void Commit(uint32_t ranks) {
    root_ = *CheckpointRoot::Open(&files_, "/c");
    const auto committed = CommitTiny(&files_, root_.get(), ranks, 9, 1);
    ASSERT_TRUE(committed.ok()) << committed.status();
    path_ = committed->path;
    folder_ = *files_.OpenFolder(path_);
    manifest_ = *ReadManifest(*folder_);
  }

  MemoryFileSystem files_;
  std::unique_ptr<CheckpointRoot> root_;
  std::string path_;
  std::unique_ptr<Folder> folder_;
  Manifest manifest_;
  ParameterCatalog catalog_ = TinyCatalog();
};

TEST_F(RestoreTest, C4_AnyLayoutAtSaveLoadsIntoAnyLayout) {
  std::mt19937 random(4);
  for (uint32_t ranks : {1, 2, 3, 5}) {
    files_ = MemoryFileSystem();
    Commit(ranks);
    for (int round = 0; round < 5; ++round) {
      std::vector<RestoreTarget> targets;
      std::vector<std::vector<float>> wanted, got;
      for (const StoredObject& object : manifest_.objects()) {
        const std::vector<float> whole = TinyObject(object.kind(), catalog_.Find(object.name()), 9);
        for (const Box& box : RandomTiling(AsShape(object.shape()), round * 2, &random)) {
          wanted.push_back(Part(whole, AsShape(object.shape()), box));
          targets.push_back({object.kind(), object.name(), box, {}});
        }
      }
      for (const auto& part : wanted) got.emplace_back(part.size(), -1.0f);
      for (size_t i = 0; i < targets.size(); ++i) targets[i].destination = got[i];
      const absl::Status restored = RestoreObjects(*folder_, manifest_, targets, 2);
      ASSERT_TRUE(restored.ok()) << restored;
      EXPECT_EQ(got, wanted);
    }
  }
}

TEST_F(RestoreTest, C6_DamageIsNamedAndMissingThingsAreRefused) {
  Commit(2);
  std::vector<float> values(8 * 8);
  const RestoreTarget target = {MASTER, "layers.1.moe.experts.2.gate_up",
                                MakeBox({0, 0}, {8, 8}), values};
  const auto restore = [&](RestoreTarget wanted) {
    return RestoreObjects(*folder_, manifest_, {&wanted, 1}, 1);
  };
  ASSERT_TRUE(restore(target).ok());
  const std::string file = path_ + "/x-L001-E0002.safetensors";
  const std::string good = files_.Read(file);
  std::string bad = good;
  uint64_t begin = 0;
  for (const StoredObject& object : manifest_.objects()) {
    if (object.name() == target.name && object.kind() == MASTER) begin = object.shards(0).begin();
  }
  bad[begin] = static_cast<char>(bad[begin] ^ 1);
  for (const std::string& damaged : {bad, good.substr(0, begin + 4)}) {
    files_.Write(file, damaged);
    const absl::Status status = restore(target);
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr("x-L001-E0002.safetensors: object "
                                            "master/layers.1.moe.experts.2.gate_up"));
  }
  files_.Remove(file);
  EXPECT_TRUE(absl::IsDataLoss(restore(target)));

  RestoreTarget wrong = target;
  wrong.name = "layers.1.moe.experts.3.gate_up";
  EXPECT_TRUE(absl::IsNotFound(restore(wrong)));
  wrong = target;
  wrong.box = MakeBox({1, 0}, {8, 8});
  EXPECT_TRUE(absl::IsFailedPrecondition(restore(wrong)));
  wrong = target;
  wrong.box = MakeBox({1, 0}, {7, 8});
  EXPECT_THAT(restore(wrong).message(), HasSubstr("goes to 64 floats"));
  manifest_.mutable_objects(0)->mutable_shards()->RemoveLast();
  values.resize(16 * 8);
  EXPECT_THAT(restore({MASTER, "embedding", MakeBox({0, 0}, {16, 8}), values}).message(),
              HasSubstr("no shard holds"));
}

TEST_F(RestoreTest, ResumeIsRefusedWithEveryFieldThatChanged) {
  Commit(1);
  JobSpec spec = TinyJob();
  EXPECT_TRUE(CheckResumable(manifest_, spec, catalog_).ok());
  spec.mutable_train()->set_steps(1000);
  spec.mutable_elastic()->set_slots_per_node(2);
  EXPECT_TRUE(CheckResumable(manifest_, spec, catalog_).ok());
  spec.mutable_train()->set_seed(2);
  spec.mutable_model()->set_vocabulary(32);
  const auto other = ParameterCatalog::Build(spec);
  const absl::Status refused = CheckResumable(manifest_, spec, *other);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(refused.message(), HasSubstr("train.seed: 1 -> 2"));
  EXPECT_THAT(refused.message(), HasSubstr("model.vocabulary: 16 -> 32"));
  EXPECT_THAT(CheckInitFrom(manifest_, *other).message(),
              HasSubstr("object master/embedding: is F32 [16, 8] and not F32 [32, 8]"));

  spec = TinyJob();
  spec.mutable_train()->mutable_optimizer()->mutable_sgd();
  ApplyDefaults(&spec);
  EXPECT_THAT(CheckResumable(manifest_, spec, catalog_).message(),
              HasSubstr("object adam_m/embedding is not one of this job"));
  EXPECT_TRUE(CheckInitFrom(manifest_, catalog_).ok());
  manifest_.set_weights_only(true);
  EXPECT_THAT(CheckResumable(manifest_, TinyJob(), catalog_).message(),
              HasSubstr("train.init_from"));
}

// A peer in this process: it serves one arena file, and can be made to lie.
class FakePeer : public SnapshotPeer {
 public:
  explicit FakePeer(const std::string& path) : reader_(*SnapshotReader::Open(path)) {}

  absl::StatusOr<SnapshotIndex> Index(const SnapshotRef&) override { return reader_->index(); }
  absl::Status Read(const ReadSnapshotRequest& request, const Sink& sink) override {
    if (gone) return absl::UnavailableError("the host is away");
    for (const auto& range : request.ranges()) {
      bytes_read += range.bytes();
      std::vector<std::byte> all;
      const absl::Status read = reader_->Read(
          static_cast<int>(range.object()), 0, UINT64_MAX,
          [&](uint64_t, std::span<const std::byte> bytes) {
            all.insert(all.end(), bytes.begin(), bytes.end());
            return absl::OkStatus();
          });
      if (!read.ok()) return read;
      if (flip) all[range.begin()] ^= std::byte{1};
      std::span<const std::byte> rest = std::span(all).subspan(range.begin(), range.bytes());
      if (cut) rest = rest.first(rest.size() - 1);
      while (!rest.empty()) {  // odd pieces, as a network may make them
        const auto piece = rest.first(std::min<size_t>(rest.size(), 100003));
        if (absl::Status status = sink(piece); !status.ok()) return status;
        rest = rest.subspan(piece.size());
      }
    }
    return absl::OkStatus();
  }

  std::atomic<uint64_t> bytes_read = 0;
  bool gone = false, flip = false, cut = false;

 private:
  const std::unique_ptr<SnapshotReader> reader_;
};

// Two ranks' snapshots of one object of 1,000 x 1,024 floats: its upper and its lower half.
class SourcesTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kRows = 1000, kColumns = 1024;

  SourcesTest() {
    std::iota(whole_.begin(), whole_.end(), 0.0f);
    for (uint32_t rank : {0u, 1u}) WriteSnapshot(rank);
  }

  static Box Half(uint32_t rank) { return MakeBox({rank * kRows / 2, 0}, {kRows / 2, kColumns}); }
  std::string ArenaOf(uint32_t rank) const { return path_ + "/r" + std::to_string(rank); }

  void WriteSnapshot(uint32_t rank) const {
    SnapshotIndex index;
    index.set_job("j");
    index.set_generation(3);
    index.set_rank(rank);
    index.set_ranks(2);
    index.mutable_state()->set_step(7);
    ArenaObject* object = index.add_objects();
    object->set_kind(MASTER);
    object->set_name("w");
    object->set_element(ELEMENT_F32);
    object->add_shape(kRows);
    object->add_shape(kColumns);
    *object->mutable_box() = Half(rank);
    auto writer = *SnapshotWriter::Create(ArenaOf(rank), index);
    writer->CopyObject(0, std::as_bytes(std::span(whole_)).subspan(
                              rank * whole_.size() * 2, whole_.size() * 2));
    ASSERT_TRUE(writer->Finish().ok());
  }

  // A healthy copy of rank 0's.
  void WriteSnapshotElsewhere() const {
    std::filesystem::rename(ArenaOf(0), path_ + "/damaged");
    WriteSnapshot(0);
    std::filesystem::rename(ArenaOf(0), path_ + "/copy");
  }

  static HeldSnapshot Held(uint32_t rank, const std::string& path) {
    HeldSnapshot held;
    held.set_job("j");
    held.set_generation(3);
    held.set_step(7);
    held.set_rank(rank);
    held.set_path(path);
    return held;
  }
  static SnapshotRef Ref(uint32_t rank) {
    SnapshotRef ref;
    ref.set_job("j");
    ref.set_generation(3);
    ref.set_step(7);
    ref.set_rank(rank);
    return ref;
  }

  std::unique_ptr<ObjectSource> Arena(uint32_t rank) const {
    auto source = OpenArenaSource(Held(rank, ArenaOf(rank)));
    EXPECT_TRUE(source.ok()) << source.status();
    return *std::move(source);
  }
  std::unique_ptr<ObjectSource> Peer(uint32_t rank, std::shared_ptr<FakePeer> peer) const {
    auto source = OpenPeerSource(std::move(peer), Ref(rank), "n2");
    EXPECT_TRUE(source.ok()) << source.status();
    return *std::move(source);
  }

  absl::StatusOr<RestoreSummary> Restore(std::vector<const ObjectSource*> sources, const Box& box,
                                         std::vector<float>* into) const {
    into->assign(*CheckedElements(AsShape(box.length())), -1.0f);
    const RestoreTarget target = {MASTER, "w", box, *into};
    return RestoreObjects(sources, {&target, 1}, 2);
  }
  void Flip(const std::string& path, uint64_t from_end) const {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(-static_cast<std::streamoff>(from_end), std::ios::end);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(-static_cast<std::streamoff>(from_end), std::ios::end);
    file.put(byte);
  }

  const Box all_ = MakeBox({0, 0}, {kRows, kColumns});
  const ScratchFolder scratch_;
  const std::string path_ = scratch_.path();
  std::vector<float> whole_ = std::vector<float>(kRows * kColumns);
  std::vector<float> got_;
};

TEST_F(SourcesTest, OwnMemoryFirstThenThePeerAndOnlyTheBytesThatAreNeeded) {
  const auto own = Arena(0);
  const auto peers = std::make_shared<FakePeer>(ArenaOf(0));
  const auto other = std::make_shared<FakePeer>(ArenaOf(1));
  const auto copy = Peer(0, peers), rest = Peer(1, other);
  auto summary = Restore({own.get(), copy.get(), rest.get()}, all_, &got_);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(got_, whole_);
  EXPECT_THAT(summary->bytes, ElementsAre(kRows * kColumns * 2, 0u, kRows * kColumns * 2));
  EXPECT_TRUE(summary->bad.empty());
  EXPECT_EQ(peers->bytes_read, 0u);

  // One row of the lower half: only its chunk crosses the wire, the second and last one.
  other->bytes_read = 0;
  const Box row = MakeBox({kRows / 2 + 300, 0}, {1, kColumns});
  summary = Restore({own.get(), copy.get(), rest.get()}, row, &got_);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(got_, Part(whole_, std::vector<uint64_t>{kRows, kColumns}, row));
  EXPECT_EQ(other->bytes_read, kRows * kColumns * 2 - kSnapshotChunk);
  EXPECT_THAT(summary->bytes, ElementsAre(0u, 0u, kColumns * sizeof(float)));
}

TEST_F(SourcesTest, C6_ABadSourceIsLeftForTheNextThatHasTheSame) {
  Flip(ArenaOf(0), 100);
  const auto damaged = Arena(0);
  const auto lower = Arena(1);
  WriteSnapshotElsewhere();
  const auto copy = std::make_shared<FakePeer>(path_ + "/copy");
  const auto healthy = Peer(0, copy);
  auto summary = Restore({damaged.get(), lower.get(), healthy.get()}, all_, &got_);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(got_, whole_);
  ASSERT_EQ(summary->bad.size(), 1u);
  EXPECT_EQ(summary->bad[0].source, 0);
  EXPECT_TRUE(absl::IsDataLoss(summary->bad[0].status)) << summary->bad[0].status;
  EXPECT_THAT(summary->bad[0].status.message(), HasSubstr("object master/w [0:500, 0:1024]"));

  // None is left: the last one's error, which names it.
  for (bool FakePeer::*fault : {&FakePeer::flip, &FakePeer::cut, &FakePeer::gone}) {
    (*copy).*fault = true;
    summary = Restore({damaged.get(), lower.get(), healthy.get()}, all_, &got_);
    EXPECT_EQ(summary.status().code(), fault == &FakePeer::gone ? absl::StatusCode::kUnavailable
                                                                : absl::StatusCode::kDataLoss);
    EXPECT_THAT(summary.status().message(), HasSubstr("rank 0 in the memory of node n2"));
    (*copy).*fault = false;
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(Restore({lower.get()}, all_, &got_).status()));
}

TEST_F(SourcesTest, ASnapshotOfAnotherStepIsRefused) {
  HeldSnapshot held = Held(0, ArenaOf(0));
  held.set_step(8);
  EXPECT_THAT(OpenArenaSource(held).status().message(), HasSubstr("is now of rank 0 at step 7"));
  SnapshotRef ref = Ref(1);
  EXPECT_TRUE(absl::IsDataLoss(
      OpenPeerSource(std::make_shared<FakePeer>(ArenaOf(0)), ref, "n2").status()));
  EXPECT_TRUE(absl::IsNotFound(OpenArenaSource(Held(2, ArenaOf(2))).status()));
}

class SnapshotTest : public ::testing::Test {
 protected:
  SnapshotTest() {
    worker_.set_job("tiny");
    worker_.set_generation(4);
    for (ParameterId id = 0; id < catalog_.size(); ++id) {
      for (ObjectKind kind : {MASTER, ADAM_M, ADAM_V}) values_.push_back(TinyObject(kind, id, 6));
    }
    for (ParameterId id = 0; id < catalog_.size(); ++id) {
      for (ObjectKind kind : {MASTER, ADAM_M, ADAM_V}) {
        SnapshotObject object;
        object.kind = kind;
        object.name = catalog_[id].name;
        object.shape.assign(catalog_[id].shape.begin(), catalog_[id].shape.end());
        object.box = WholeBox(object.shape);
        object.source = values_[objects_.size()];
        object.layer = catalog_[id].expert < 0 ? -1 : catalog_[id].layer;
        object.expert = catalog_[id].expert;
        objects_.push_back(object);
      }
    }
  }

  bool Exists(int buffer) const {
    return std::filesystem::exists(path_ + "/arena." + std::to_string(buffer));
  }

  const ScratchFolder scratch_;
  const std::string path_ = scratch_.path();
  ParameterCatalog catalog_ = TinyCatalog();
  std::vector<std::vector<float>> values_;
  std::vector<SnapshotObject> objects_;
  WorkerIdentity worker_;
};

TEST_F(SnapshotTest, GoesFromMemoryToDiskAndBackBitForBit) {
  SnapshotTaker taker(worker_, 2, path_ + "/arena");
  const auto report = taker.Take(TinyState(6), objects_, 2);
  ASSERT_TRUE(report.ok() && report->has_value()) << report.status();
  EXPECT_EQ((*report)->step(), 6u);

  const auto snapshot = SnapshotReader::Open(path_ + "/arena.0");
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  FileSystem& files = FileSystem::System();
  const auto root = *CheckpointRoot::Open(&files, path_ + "/checkpoints");
  const auto staging = root->BeginStaging(6, 4);
  const auto folder = *files.OpenFolder(*staging);
  EXPECT_TRUE(absl::IsFailedPrecondition(PersistShards(**snapshot, 5, folder.get()).status()));
  const auto persisted = PersistShards(**snapshot, 6, folder.get());
  ASSERT_TRUE(persisted.ok()) << persisted.status();
  const auto committed = root->Commit(TinyRequest(*staging, {*persisted}, 4));
  ASSERT_TRUE(committed.ok()) << committed.status();

  const auto step = OpenCheckpoint(&files, path_ + "/checkpoints");
  ASSERT_TRUE(step.ok());
  EXPECT_TRUE(VerifyStep(*step->folder, VerifyDepth::kContent).ok());
  std::vector<std::vector<float>> got;
  std::vector<RestoreTarget> targets;
  for (const std::vector<float>& values : values_) got.emplace_back(values.size());
  for (size_t i = 0; i < objects_.size(); ++i) {
    targets.push_back({objects_[i].kind, objects_[i].name, objects_[i].box, got[i]});
  }
  const absl::Status restored =
      RestoreObjects(*step->folder, *ReadManifest(*step->folder), targets, 2);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(got, values_);
}

class BufferTest : public SnapshotTest {
 protected:
  // The buffer it went to; -1: there was none.
  int Take(uint64_t step) {
    const auto report = taker_.Take(TinyState(step), objects_, 1);
    EXPECT_TRUE(report.ok()) << report.status();
    return report->has_value() ? static_cast<int>((*report)->buffer()) : -1;
  }
  void Settle(uint64_t committed, uint64_t aborted, uint64_t memory = 0,
              std::vector<uint64_t> kept = {}) {
    Control control;
    control.set_committed_step(committed);
    control.set_aborted_snapshot_step(aborted);
    control.set_memory_step(memory);
    control.mutable_kept_steps()->Assign(kept.begin(), kept.end());
    taker_.Settle(control);
  }

  std::string Path(int buffer) const { return path_ + "/arena." + std::to_string(buffer); }
  // As its agent sees it.
  bool Held(int buffer) const { return SnapshotReader::Open(Path(buffer)).ok(); }
  ino_t File(int buffer) const {
    struct stat info {};
    EXPECT_EQ(stat(Path(buffer).c_str(), &info), 0);
    return info.st_ino;
  }

  SnapshotTaker taker_{worker_, 2, path_ + "/arena"};
};

TEST_F(BufferTest, C11_AtMostTwoBuffersAndTheSecondOnlyInFlight) {
  EXPECT_EQ(Take(10), 0);
  EXPECT_EQ(Take(11), 1);
  EXPECT_EQ(Take(12), -1);
  EXPECT_EQ(taker_.skipped(), 1u);
  Settle(9, 9, 9, {9});
  EXPECT_TRUE(taker_.full());
  Settle(0, 0, 10, {10});
  EXPECT_TRUE(taker_.full());  // 11 is in flight
  Settle(0, 0, 11, {11});
  EXPECT_FALSE(Held(0));
  EXPECT_TRUE(Held(1));
  EXPECT_EQ(Take(20), 0);
  Settle(0, 20, 11, {11});  // given up: the one in memory stays
  EXPECT_FALSE(Held(0));
  EXPECT_TRUE(Held(1));
}

// The memory of a free buffer stays, and whoever reads what was in it sees all of it or an error.
TEST_F(BufferTest, C11_AFreeBufferIsUsedAgainAndNeverPassesForWhatItHeld) {
  EXPECT_EQ(Take(10), 0);
  const ino_t file = File(0);
  const auto reader = SnapshotReader::Open(Path(0));
  ASSERT_TRUE(reader.ok());
  EXPECT_TRUE((*reader)->Stands());
  EXPECT_EQ(Take(20), 1);
  Settle(0, 0, 20, {20});
  EXPECT_FALSE(Held(0));
  EXPECT_FALSE((*reader)->Stands());
  for (std::vector<float>& values : values_) {
    for (float& value : values) value += 1;
  }
  EXPECT_EQ(Take(30), 0);
  EXPECT_EQ(File(0), file);
  EXPECT_FALSE((*reader)->Stands());
  EXPECT_EQ((*reader)->index().state().step(), 10u);
  const auto sink = [](uint64_t, std::span<const std::byte>) { return absl::OkStatus(); };
  EXPECT_TRUE(absl::IsDataLoss((*reader)->Read(0, 0, UINT64_MAX, sink)));
  const auto next = SnapshotReader::Open(Path(0));
  ASSERT_TRUE(next.ok());
  EXPECT_EQ((*next)->index().state().step(), 30u);
  for (int i = 0; i < (*next)->index().objects_size(); ++i) {
    std::vector<std::byte> bytes;
    EXPECT_TRUE((*next)->Read(i, 0, UINT64_MAX, [&](uint64_t, std::span<const std::byte> part) {
      bytes.insert(bytes.end(), part.begin(), part.end());
      return absl::OkStatus();
    }).ok());
    EXPECT_TRUE(
        std::ranges::equal(bytes, std::as_bytes(std::span(values_[static_cast<size_t>(i)]))));
  }
}

TEST_F(BufferTest, C11_WhatIsReadIsNotWrittenOver) {
  EXPECT_EQ(Take(10), 0);
  Settle(0, 0, 10, {10});
  EXPECT_EQ(Take(20), 1);
  Settle(0, 0, 20, {10, 20});  // 10 is on its way to disk
  EXPECT_EQ(Take(30), -1);
  Settle(10, 0, 20, {20});
  EXPECT_EQ(Take(30), 0);
  EXPECT_TRUE(Held(0) && Held(1));
}

TEST_F(SnapshotTest, AWrongSourceIsRefused) {
  SnapshotTaker taker(worker_, 2, path_ + "/arena");
  objects_[0].source = objects_[0].source.subspan(1);
  EXPECT_THAT(taker.Take(TinyState(1), objects_, 1).status().message(),
              HasSubstr("master/embedding: box [0:16, 0:8] is not of 127 floats"));
  EXPECT_FALSE(Exists(0));
}

}  // namespace
}  // namespace moesaic
