// Saves that take over the files in which nothing has changed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "tests/base/scratch_folder.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class IncrementalTest : public ::testing::Test {
 protected:
  CommittedStep Commit(uint64_t step, int frozen, uint32_t ranks = 2) {
    const auto committed = CommitTiny(&files_, root_.get(), ranks, step, 1, frozen);
    EXPECT_TRUE(committed.ok()) << committed.status();
    return committed.value_or(CommittedStep());
  }

  std::vector<std::string> Problems(uint64_t step) {
    const auto folder = files_.OpenFolder(root_->StepPath(step));
    return VerifyStep(**folder, VerifyDepth::kContent).problems;
  }

  Manifest ManifestOf(uint64_t step) {
    return *ReadManifest(**files_.OpenFolder(root_->StepPath(step)));
  }

  const StoredFile& FileOf(const Manifest& manifest, const std::string& name) {
    for (const StoredFile& file : manifest.files()) {
      if (file.name() == name) return file;
    }
    ADD_FAILURE() << name;
    return manifest.files(0);
  }

  MemoryFileSystem files_;
  std::unique_ptr<CheckpointRoot> root_ = *CheckpointRoot::Open(&files_, "/c");
};

constexpr char kFrozen[] = "x-L001-E0000.safetensors";
constexpr char kTrained[] = "x-L001-E0002.safetensors";

TEST_F(IncrementalTest, AFrozenExpertIsStoredOnce) {
  EXPECT_EQ(Commit(1, 1).reused_bytes, 0u);
  const uint64_t one = files_.BytesOnDisk("/c");
  const CommittedStep second = Commit(99, 1);
  const Manifest manifest = ManifestOf(99);
  const uint64_t linked = FileOf(manifest, kFrozen).bytes();
  EXPECT_EQ(second.reused_bytes, linked);
  EXPECT_EQ(FileOf(manifest, kFrozen).written_at_step(), 1u);
  EXPECT_FALSE(FileOf(manifest, kTrained).has_written_at_step());
  EXPECT_NEAR(static_cast<double>(files_.BytesOnDisk("/c")), 2.0 * one - linked, 200);
  EXPECT_THAT(Problems(99), IsEmpty());
  // The step number in a file's header is one digit longer from here on; the file is the same.
  Commit(100, 1);
  EXPECT_EQ(FileOf(ManifestOf(100), kFrozen).written_at_step(), 1u);
  EXPECT_THAT(Problems(100), IsEmpty());
}

TEST_F(IncrementalTest, AnExpertThatThawsIsWrittenAndFreezesAnew) {
  Commit(1, 1);
  EXPECT_EQ(Commit(2, 0).reused_bytes, 0u);
  EXPECT_EQ(Commit(3, 1).reused_bytes, 0u);
  EXPECT_EQ(FileOf(ManifestOf(3), kFrozen).has_written_at_step(), false);
  Commit(4, 1);
  EXPECT_EQ(FileOf(ManifestOf(4), kFrozen).written_at_step(), 3u);
}

TEST_F(IncrementalTest, EveryStepIsCompleteWhateverGoes) {
  for (uint64_t step = 1; step <= 4; ++step) Commit(step, 2, 1 + step % 3);
  KeepSpec keep;
  keep.set_last(1);
  EXPECT_THAT(*root_->Retain(keep), ElementsAre(1, 2, 3));
  EXPECT_THAT(Problems(4), IsEmpty());
  EXPECT_EQ(FileOf(ManifestOf(4), kFrozen).written_at_step(), 1u);
}

TEST_F(IncrementalTest, AnotherLayoutStillLinksTheExperts) {
  Commit(1, 3, 1);
  const CommittedStep second = Commit(2, 3, 3);
  uint64_t experts = 0;
  const Manifest manifest = ManifestOf(2);
  for (const StoredFile& file : manifest.files()) {
    if (file.name()[0] == 'x') experts += file.bytes();
  }
  EXPECT_EQ(second.reused_bytes, experts);
  EXPECT_THAT(Problems(2), IsEmpty());
}

TEST_F(IncrementalTest, ADamagedFileIsNotTakenOver) {
  Commit(1, 1);
  const std::string file = root_->StepPath(1) + "/" + kFrozen;
  std::string content = files_.Read(file);
  content.back() = static_cast<char>(content.back() ^ 1);
  files_.Write(file, content);
  EXPECT_EQ(Commit(2, 1).reused_bytes, 0u);
  EXPECT_THAT(Problems(2), IsEmpty());
  files_.Write(file, content.substr(1));
  files_.Remove(root_->StepPath(2) + "/" + kFrozen);
  EXPECT_EQ(Commit(3, 1).reused_bytes, 0u);
  EXPECT_THAT(Problems(3), IsEmpty());
}

TEST_F(IncrementalTest, WithoutLinksEverythingIsWritten) {
  files_.RefuseLinks();
  Commit(1, 1);
  EXPECT_EQ(Commit(2, 1).reused_bytes, 0u);
  EXPECT_THAT(Problems(2), IsEmpty());
}

TEST_F(IncrementalTest, AnEarlierStepThatCannotBeReadIsNone) {
  Commit(1, 1);
  files_.Remove(root_->StepPath(1) + "/MANIFEST.pb");
  EXPECT_EQ(OpenEarlierStep(&files_, "/c/.staging/step-2.g1.x", 2), nullptr);
  EXPECT_EQ(OpenEarlierStep(&files_, "/c/.staging/step-1.g1.x", 1), nullptr);
  EXPECT_EQ(OpenEarlierStep(&files_, "/none/.staging/x", 2), nullptr);
  EXPECT_EQ(OpenEarlierStep(&files_, "x", 2), nullptr);
  EXPECT_EQ(Commit(2, 1).reused_bytes, 0u);
}

// C9 for steps that share files: whatever is kept, pinned, removed or set aside, what stays is
// whole.
TEST_F(IncrementalTest, C9_SharedFilesSurviveAnyRetention) {
  for (int seed = 0; seed < 20; ++seed) {
    files_ = MemoryFileSystem();
    root_ = *CheckpointRoot::Open(&files_, "/c");
    std::mt19937 random(seed);
    for (uint64_t step = 1; step <= 8; ++step) {
      Commit(step, random() % 4, 1 + random() % 3);
      if (random() % 4 == 0) {
        ASSERT_TRUE(root_->Pin(step, "").ok());
      }
      KeepSpec keep;
      keep.set_last(1 + random() % 3);
      keep.set_every_steps(random() % 4);
      if (random() % 2 == 0) {
        ASSERT_TRUE(root_->Retain(keep).ok());
      }
      if (random() % 5 == 0) {
        ASSERT_TRUE(root_->Quarantine(step, "a test").ok());
      }
      const auto steps = root_->Steps();
      for (uint64_t left : *steps) {
        ASSERT_THAT(Problems(left), IsEmpty()) << "seed " << seed << ", step " << left;
      }
    }
  }
}

TEST(IncrementalOnDiskTest, RealLinksShareTheInode) {
  const ScratchFolder scratch;
  const std::string path = scratch / "checkpoints";
  FileSystem& files = FileSystem::System();
  {
    const auto root = *CheckpointRoot::Open(&files, path);
    for (uint64_t step : {1, 2}) ASSERT_TRUE(CommitTiny(&files, root.get(), 2, step, 1, 1).ok());
    EXPECT_EQ(std::filesystem::hard_link_count(root->StepPath(2) + "/" + kFrozen), 2u);
    EXPECT_EQ(std::filesystem::hard_link_count(root->StepPath(2) + "/" + kTrained), 1u);
    ASSERT_TRUE(root->Remove(1, false).ok());
    EXPECT_EQ(std::filesystem::hard_link_count(root->StepPath(2) + "/" + kFrozen), 1u);
    EXPECT_EQ(*root->NewestVerified(VerifyDepth::kContent), 2u);
    const auto folder = files.OpenFolder(root->StepPath(2));
    EXPECT_TRUE(absl::IsAlreadyExists((*folder)->Link(kFrozen, folder->get(), kTrained)));
    EXPECT_TRUE(absl::IsNotFound((*folder)->Link("none", folder->get(), "other")));
    EXPECT_TRUE(absl::IsInvalidArgument((*folder)->Link(kFrozen, folder->get(), "../x")));
  }
}

}  // namespace
}  // namespace moesaic
