#include "trainer/checkpoint/restore.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "proto/job_spec.h"
#include "tests/trainer/checkpoint/boxes.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/snapshot_arena.h"
#include "trainer/checkpoint/snapshot.h"

namespace moesaic {
namespace {

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

class SnapshotTest : public ::testing::Test {
 protected:
  SnapshotTest() {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
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
  ~SnapshotTest() override { std::filesystem::remove_all(path_); }

  bool Exists(int buffer) const {
    return std::filesystem::exists(path_ + "/arena." + std::to_string(buffer));
  }

  std::string path_ = testing::TempDir() + "/snapshot." + std::to_string(getpid());
  ParameterCatalog catalog_ = TinyCatalog();
  std::vector<std::vector<float>> values_;
  std::vector<SnapshotObject> objects_;
  WorkerIdentity worker_;
};

TEST_F(SnapshotTest, GoesFromMemoryToDiskAndBackBitForBit) {
  SnapshotTaker taker(worker_, path_ + "/arena");
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

TEST_F(SnapshotTest, C11_AtMostTwoBuffersAndOneInFlight) {
  SnapshotTaker taker(worker_, path_ + "/arena");
  const auto take = [&](uint64_t step) {
    const auto report = taker.Take(TinyState(step), objects_, 1);
    EXPECT_TRUE(report.ok()) << report.status();
    return report->has_value() ? static_cast<int>((*report)->buffer()) : -1;
  };
  EXPECT_EQ(take(10), 0);
  EXPECT_EQ(take(11), -1);
  EXPECT_EQ(taker.skipped(), 1u);
  taker.Settle(9, 9);
  EXPECT_TRUE(taker.in_flight());
  taker.Settle(10, 0);
  EXPECT_FALSE(taker.in_flight());
  EXPECT_TRUE(Exists(0));
  EXPECT_EQ(take(20), 1);
  EXPECT_TRUE(Exists(0) && Exists(1));
  taker.Settle(10, 20);  // given up: the committed one stays
  EXPECT_TRUE(Exists(0));
  EXPECT_FALSE(Exists(1));
  EXPECT_EQ(take(30), 1);
  taker.Settle(30, 20);
  EXPECT_FALSE(Exists(0));
  EXPECT_EQ(take(40), 0);
}

TEST_F(SnapshotTest, AWrongSourceIsRefused) {
  SnapshotTaker taker(worker_, path_ + "/arena");
  objects_[0].source = objects_[0].source.subspan(1);
  EXPECT_THAT(taker.Take(TinyState(1), objects_, 1).status().message(),
              HasSubstr("master/embedding: box [0:16, 0:8] is not of 127 floats"));
  EXPECT_FALSE(taker.in_flight());
}

}  // namespace
}  // namespace moesaic
