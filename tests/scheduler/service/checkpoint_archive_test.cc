#include "scheduler/service/checkpoint_archive.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/base/scratch_folder.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kDir[] = "/disk/checkpoints";

// Of what does not depend on when it was looked at.
std::vector<std::string> Rebuildable(std::vector<CheckpointEntry> entries) {
  std::vector<std::string> texts;
  for (CheckpointEntry& entry : entries) {
    entry.clear_verified_unix_ns();
    texts.push_back(entry.ShortDebugString());
  }
  return texts;
}

class CheckpointArchiveTest : public ::testing::Test {
 protected:
  void SetUp() override { Open(false); }
  void TearDown() override { archive_.reset(); }

  void Open(bool verify, const std::string& catalog = "/catalog.sqlite") {
    archive_.reset();
    ArchiveOptions options;
    options.catalog_path = dir_ + catalog;
    options.files = &files_;
    options.verify = verify;
    options.note = [this](const std::string& job, const std::string& text) {
      MutexLock lock(&mutex_);
      notes_.push_back(job + ": " + text);
    };
    auto archive = CheckpointArchive::Open(options);
    ASSERT_TRUE(archive.ok()) << archive.status();
    archive_ = *std::move(archive);
    archive_->Watch([this](const CheckpointEvent& event) {
      MutexLock lock(&mutex_);
      events_.push_back(CheckpointEvent::Kind_Name(event.kind()) + " " +
                        std::to_string(event.checkpoint().step()));
    });
  }
  void Commit(uint64_t step) {
    const absl::Status status = archive_->With("tiny", kDir, [&](CheckpointRoot* root) {
      return CommitTiny(&files_, root, 2, step, 1).status();
    });
    ASSERT_TRUE(status.ok()) << status;
  }
  std::vector<CheckpointEntry> List() { return *archive_->List("tiny", kDir); }
  std::vector<std::string> Events() {
    MutexLock lock(&mutex_);
    return std::exchange(events_, {});
  }
  void Damage(uint64_t step) {
    const std::string folder = archive_->Find("tiny", kDir, step)->path();
    for (const std::string& name : files_.List(folder)) {
      if (name.find(".safetensors") == std::string::npos) continue;
      std::string content = files_.Read(folder + "/" + name);
      content.back() = static_cast<char>(content.back() ^ 1);
      files_.Write(folder + "/" + name, content);
      return;
    }
  }

  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  MemoryFileSystem files_;
  Mutex mutex_;
  std::vector<std::string> notes_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> events_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<CheckpointArchive> archive_;
};

TEST_F(CheckpointArchiveTest, ListsWhatWasCommitted) {
  EXPECT_THAT(List(), IsEmpty());
  Commit(7);
  Commit(9);
  const std::vector<CheckpointEntry> entries = List();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].step(), 7u);
  EXPECT_EQ(entries[0].generation(), 1u);
  EXPECT_GT(entries[0].bytes(), 0u);
  EXPECT_FALSE(entries[0].pinned());
  EXPECT_THAT(Events(), ElementsAre("COMMITTED 7", "COMMITTED 9"));
  EXPECT_EQ(archive_->Find("tiny", kDir, 0)->step(), 9u);
  EXPECT_TRUE(absl::IsNotFound(archive_->Find("tiny", kDir, 8).status()));
}

TEST_F(CheckpointArchiveTest, CatalogRebuiltEqualsCatalogKept) {
  for (const uint64_t step : {3, 5, 7, 9}) Commit(step);
  ASSERT_TRUE(archive_->Pin("tiny", kDir, 5, true).ok());
  ASSERT_TRUE(archive_->Delete("tiny", kDir, 3, false, 0).ok());
  Damage(9);
  ASSERT_TRUE(archive_->Verify("tiny", kDir, 9, VerifyOptions()).ok());
  const std::vector<std::string> kept = Rebuildable(List());
  ASSERT_EQ(kept.size(), 3u);  // 5, 7 and 9 in quarantine
  Open(false, "/another.sqlite");
  EXPECT_EQ(Rebuildable(List()), kept);
}

TEST_F(CheckpointArchiveTest, WhereCatalogAndFoldersDifferTheFoldersAreRight) {
  Commit(3);
  Commit(5);
  const std::string gone = archive_->Find("tiny", kDir, 3)->path();
  archive_.reset();
  const auto root = files_.OpenFolder(kDir);
  ASSERT_TRUE(RemoveTree(root->get(), std::filesystem::path(gone).filename()).ok());
  Open(false);
  Events();
  ASSERT_EQ(List().size(), 1u);
  EXPECT_EQ(List()[0].step(), 5u);
  EXPECT_THAT(Events(), ElementsAre("DELETED 3"));
}

TEST_F(CheckpointArchiveTest, ADamagedCatalogIsMadeAnew) {
  Commit(3);
  archive_.reset();
  std::ofstream(dir_ + "/catalog.sqlite", std::ios::trunc)
      << "this is not a database, and long enough to be looked at as one by its header";
  Open(false);
  EXPECT_EQ(List().size(), 1u);
}

TEST_F(CheckpointArchiveTest, DeleteRefusesThePinnedTheUsedAndTheLast) {
  Commit(3);
  Commit(5);
  ASSERT_TRUE(archive_->Pin("tiny", kDir, 3, true).ok());
  EXPECT_TRUE(List()[0].pinned());
  EXPECT_TRUE(absl::IsFailedPrecondition(archive_->Delete("tiny", kDir, 3, false, 0)));
  EXPECT_TRUE(absl::IsFailedPrecondition(archive_->Delete("tiny", kDir, 5, true, 5)));
  ASSERT_TRUE(archive_->Pin("tiny", kDir, 3, false).ok());
  EXPECT_TRUE(archive_->Delete("tiny", kDir, 3, false, 5).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(archive_->Delete("tiny", kDir, 5, false, 0)));
  EXPECT_TRUE(archive_->Delete("tiny", kDir, 5, true, 0).ok());
  EXPECT_THAT(List(), IsEmpty());
  EXPECT_THAT(Events(), ElementsAre("COMMITTED 3", "COMMITTED 5", "PINNED 3", "UNPINNED 3",
                                    "DELETED 3", "DELETED 5"));
}

TEST_F(CheckpointArchiveTest, VerifyReportsProgressAndRemembers) {
  Commit(3);
  uint64_t last = 0;
  uint64_t total = 0;
  VerifyOptions options;
  options.threads = 3;
  options.progress = [&](uint64_t done, uint64_t all) {
    EXPECT_GE(done, last);
    last = done;
    total = all;
  };
  const auto problems = archive_->Verify("tiny", kDir, 0, options);
  ASSERT_TRUE(problems.ok()) << problems.status();
  EXPECT_THAT(*problems, IsEmpty());
  EXPECT_EQ(last, total);
  EXPECT_GT(total, 0u);
  EXPECT_GT(List()[0].verified_unix_ns(), 0);
  Open(false);
  EXPECT_GT(List()[0].verified_unix_ns(), 0);
}

TEST_F(CheckpointArchiveTest, ADamagedCheckpointIsSetAsideLoudlyInTheBackground) {
  Commit(3);
  Commit(5);
  Damage(5);
  // Nothing was verified yet: a new catalog knows neither.
  Open(true, "/another.sqlite");
  EXPECT_EQ(List().size(), 2u);
  while (true) {
    std::this_thread::yield();
    const std::vector<CheckpointEntry> entries = List();
    const bool done = entries.size() == 2 && entries[0].verified_unix_ns() != 0 &&
                      !entries[1].quarantined().empty();
    if (!done) continue;
    EXPECT_THAT(entries[1].path(), HasSubstr(".quarantine"));
    break;
  }
  archive_.reset();
  MutexLock lock(&mutex_);
  ASSERT_EQ(notes_.size(), 1u);
  EXPECT_THAT(notes_[0], HasSubstr("tiny: WARNING: the checkpoint of step 5 is damaged"));
}

}  // namespace
}  // namespace moesaic
