#include "trainer/checkpoint/format/commit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "tests/trainer/checkpoint/tiny_root.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<uint64_t> Steps(const CheckpointRoot& root) { return *root.Steps(); }

TEST(CommitTest, WhatIsCommittedVerifies) {
  MemoryFileSystem files;
  files.MakeFolders("/data").IgnoreError();
  files.Write("/data/bpe.model", "tokens");
  const auto root = OpenRoot(&files);
  const auto staging = root->BeginStaging(7, 3);
  ASSERT_TRUE(staging.ok());
  const auto reports = PersistTiny(&files, *staging, 2, 7, 3);
  ASSERT_TRUE(reports.ok()) << reports.status();
  CommitRequest request = TinyRequest(*staging, *reports, 3);
  request.tokenizer = "/data/bpe.model";
  const auto committed = root->Commit(request);
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->path, "/disk/checkpoints/step-000000007");
  EXPECT_FALSE(committed->was_there);
  EXPECT_EQ(files.Read(committed->path + "/tokenizer.model"), "tokens");
  EXPECT_THAT(files.List(std::string(kRoot) + "/.staging"), IsEmpty());
  ExpectAllVerify(&files, "after the commit");

  const auto opened = OpenCheckpoint(&files, kRoot);
  ASSERT_TRUE(opened.ok());
  EXPECT_EQ(opened->path, committed->path);
  const auto manifest = ReadManifest(*opened->folder);
  ASSERT_TRUE(manifest.ok());
  EXPECT_EQ(manifest->state().samples(), 28u);
  EXPECT_EQ(manifest->generation(), 3u);
}

class RefusalTest : public ::testing::Test {
 protected:
  RefusalTest() : root_(OpenRoot(&files_)) {
    staging_ = *root_->BeginStaging(5, 2);
    reports_ = *PersistTiny(&files_, staging_, 2, 5, 2);
  }

  absl::Status Commit() {
    return root_->Commit(TinyRequest(staging_, reports_, generation_)).status();
  }

  void ExpectRefused(const char* reason) {
    EXPECT_THAT(Commit().message(), HasSubstr(reason));
    EXPECT_THAT(Steps(*root_), IsEmpty());
  }

  MemoryFileSystem files_;
  std::unique_ptr<CheckpointRoot> root_;
  std::string staging_;
  std::vector<ShardsPersisted> reports_;
  uint64_t generation_ = 2;
};

TEST_F(RefusalTest, C7_AStagingFolderOfAnOlderGeneration) {
  generation_ = 3;
  ExpectRefused("is not one of generation 3");
}
TEST_F(RefusalTest, C7_AReportOfAnOlderGeneration) {
  reports_[1].set_generation(1);
  ExpectRefused("rank 1 reports job tiny, generation 1");
}
TEST_F(RefusalTest, AReportOfAnotherStep) {
  reports_[0].mutable_state()->set_step(4);
  ExpectRefused("(state of step 4)");
}
TEST_F(RefusalTest, ARankThatDidNotReport) {
  reports_[1].set_rank(0);
  ExpectRefused("rank 0 reported twice");
}
TEST_F(RefusalTest, ARankThatFailed) {
  reports_[1].set_error("disk full");
  ExpectRefused("rank 1 could not persist step 5: disk full");
}
TEST_F(RefusalTest, RanksThatDisagreeOnTheState) {
  reports_[1].mutable_state()->set_samples(1);
  ExpectRefused("rank 1 has another training state than rank 0");
}
TEST_F(RefusalTest, AnObjectThatNobodyWrote) {
  reports_[0].mutable_objects()->erase(reports_[0].objects().begin());
  ExpectRefused("object master/embedding: no shard holds [0:8, 0:8]");
}
TEST_F(RefusalTest, AnObjectThatTwoRanksWrote) {
  *reports_[1].mutable_objects(0)->add_shards() = reports_[1].objects(0).shards(0);
  ExpectRefused("object master/embedding: 2 shards hold [8:16, 0:8]");
}
TEST_F(RefusalTest, RanksThatDisagreeOnAShape) {
  reports_[1].mutable_objects(0)->set_shape(0, 17);
  ExpectRefused("rank 1 reports another shape, element kind or step of master/embedding");
}
TEST_F(RefusalTest, AFileThatIsNotThere) {
  files_.Remove(staging_ + "/r00001-000.safetensors");
  ExpectRefused("file r00001-000.safetensors: it is missing");
}
TEST_F(RefusalTest, AFileThatIsShorterThanReported) {
  const std::string path = staging_ + "/x-L001-E0001.safetensors";
  files_.Write(path, files_.Read(path).substr(0, 200));
  ExpectRefused("file x-L001-E0001.safetensors: it has 200 bytes");
}
TEST_F(RefusalTest, AShardInAFileThatIsNotReported) {
  reports_[0].mutable_objects(0)->mutable_shards(0)->set_file(99);
  ExpectRefused("lies in file number 99");
}
TEST_F(RefusalTest, NothingWasWrong) { EXPECT_TRUE(Commit().ok()); }

TEST(CommitTest, TheSameStepOfTheSameTrajectoryStays) {
  MemoryFileSystem files;
  const auto root = OpenRoot(&files);
  ASSERT_TRUE(CommitTiny(&files, root.get(), 2, 5, 1).ok());
  const auto again = CommitTiny(&files, root.get(), 3, 5, 2);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->was_there);
  EXPECT_THAT(files.List(std::string(kRoot) + "/.staging"), IsEmpty());
  ExpectAllVerify(&files, "second commit");
}

TEST(CommitTest, TheSameStepOfAnotherTrajectoryIsRefused) {
  MemoryFileSystem files;
  const auto root = OpenRoot(&files);
  ASSERT_TRUE(CommitTiny(&files, root.get(), 2, 5, 1).ok());
  const auto staging = root->BeginStaging(5, 2);
  const auto reports = PersistTiny(&files, *staging, 2, 5, 2);
  CommitRequest request = TinyRequest(*staging, *reports, 2);
  request.spec.mutable_train()->mutable_optimizer()->mutable_adamw()->set_lr(0.5);
  EXPECT_TRUE(absl::IsAlreadyExists(root->Commit(request).status()));
  // After the coordinator has set it aside, it can be committed.
  ASSERT_TRUE(root->SetAsideAfter(4).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(root->Commit({}).status()));
  ASSERT_TRUE(root->Abort(*staging).ok());
  ASSERT_TRUE(CommitTiny(&files, root.get(), 2, 5, 2).ok());
  EXPECT_EQ(root->Quarantined()->size(), 1u);
}

TEST(CommitTest, StepsAfterAStepOrAllOfThemAreSetAside) {
  MemoryFileSystem files;
  const auto root = OpenRoot(&files);
  for (const uint64_t step : {0, 5, 6}) {
    ASSERT_TRUE(CommitTiny(&files, root.get(), 2, step, 1).ok());
  }
  ASSERT_TRUE(root->SetAsideAfter(5).ok());
  EXPECT_THAT(*root->Steps(), testing::ElementsAre(0, 5));
  ASSERT_TRUE(root->SetAsideAfter(std::nullopt).ok());
  EXPECT_THAT(*root->Steps(), IsEmpty());
}

TEST(CommitTest, ADamagedStepOfTheSameNumberIsReplaced) {
  MemoryFileSystem files;
  const auto root = OpenRoot(&files);
  const auto first = CommitTiny(&files, root.get(), 2, 5, 1);
  files.Remove(first->path + "/x-L001-E0002.safetensors");
  const auto second = CommitTiny(&files, root.get(), 2, 5, 2);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_FALSE(second->was_there);
  ExpectAllVerify(&files, "replaced");
  EXPECT_EQ(root->Quarantined()->size(), 1u);
}

TEST(CommitTest, TheNewestStepThatVerifiesIsTakenAndDamagedOnesAreKeptAside) {
  MemoryFileSystem files;
  const auto root = OpenRoot(&files);
  EXPECT_EQ(*root->NewestVerified(VerifyDepth::kContent), std::nullopt);
  for (uint64_t step : {1, 2, 3}) ASSERT_TRUE(CommitTiny(&files, root.get(), 1, step, 1).ok());
  const std::string damaged = root->StepPath(3) + "/x-L001-E0002.safetensors";
  std::string content = files.Read(damaged);
  content.back() = static_cast<char>(content.back() ^ 1);
  files.Write(damaged, content);
  EXPECT_EQ(*root->NewestVerified(VerifyDepth::kStructure), 3u);
  EXPECT_EQ(*root->NewestVerified(VerifyDepth::kContent), 2u);
  EXPECT_THAT(Steps(*root), ElementsAre(1, 2));
  const auto aside = root->Quarantined();
  ASSERT_EQ(aside->size(), 1u);
  EXPECT_EQ(files.Read(aside->front().path + "/x-L001-E0002.safetensors"), content);
}

TEST(CommitTest, ASweepKeepsTheStagingOfTheLiveGeneration) {
  MemoryFileSystem files;
  const auto root = OpenRoot(&files);
  const auto old_one = root->BeginStaging(5, 1);
  const auto live = root->BeginStaging(6, 2);
  ASSERT_TRUE(PersistTiny(&files, *old_one, 1, 5, 1).ok());
  const auto reports = PersistTiny(&files, *live, 2, 6, 2);
  ASSERT_TRUE(root->Sweep(2).ok());
  EXPECT_EQ(files.List(std::string(kRoot) + "/.staging").size(), 1u);
  EXPECT_TRUE(root->Commit(TinyRequest(*live, *reports, 2)).ok());
}

TEST(CommitTest, C9_RetentionKeepsExactlyTheNewest) {
  std::mt19937 random(5);
  for (int round = 0; round < 10; ++round) {
    MemoryFileSystem files;
    const auto root = OpenRoot(&files);
    std::set<uint64_t> wanted;
    uint64_t step = 0;
    for (int i = 0; i < 12; ++i) {
      step += 1 + random() % 3;
      ASSERT_TRUE(CommitTiny(&files, root.get(), 1 + random() % 2, step, 1).ok());
      wanted.insert(step);
      if (random() % 2 == 0) continue;
      const auto last = static_cast<uint32_t>(random() % 4);
      const auto removed = root->Retain(KeepLast(last));
      ASSERT_TRUE(removed.ok());
      for (uint64_t gone : *removed) wanted.erase(gone);
      EXPECT_LE(wanted.size(), std::max(1u, last));
      EXPECT_TRUE(wanted.contains(step));
      EXPECT_TRUE(removed->empty() || removed->back() < *wanted.begin());
      EXPECT_THAT(Steps(*root), testing::ElementsAreArray(wanted));
      ExpectAllVerify(&files, "retention");
    }
    EXPECT_TRUE(root->Sweep(0).ok());
  }
}

TEST(ManifestTest, StepNamesAreExact) {
  EXPECT_EQ(StepFolderName(1234), "step-000001234");
  EXPECT_EQ(ParseStepFolderName("step-000001234"), 1234u);
  EXPECT_EQ(ParseStepFolderName(StepFolderName(UINT64_MAX)), UINT64_MAX);
  for (const char* name : {"step-1234", "step--00000001", "step-0000012345x", "step-", "000001234",
                           "step-000001234.tmp", "step-+00001234"}) {
    EXPECT_EQ(ParseStepFolderName(name), std::nullopt) << name;
  }
}

}  // namespace
}  // namespace moesaic
