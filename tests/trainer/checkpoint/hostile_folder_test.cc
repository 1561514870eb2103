// Step folders in which names lead elsewhere, on the machine's own file system: nothing outside is
// read, and nothing blocks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "absl/strings/str_join.h"
#include "tests/base/scratch_folder.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/object_reader.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr char kShards[] = "x-L001-E0002.safetensors";

// Puts something else in the place of `path`; what was there is at `outside`.
struct Trick {
  const char* name;
  void (*play)(const std::string& path, const std::string& outside);
};

const Trick kTricks[] = {
    {"Fifo",
     [](const std::string& path, const std::string&) { ASSERT_EQ(mkfifo(path.c_str(), 0600), 0); }},
    {"AbsoluteLink", [](const std::string& path,
                        const std::string& outside) { fs::create_symlink(outside, path); }},
    {"RelativeLink",
     [](const std::string& path, const std::string& outside) {
       fs::create_symlink(fs::relative(outside, fs::path(path).parent_path()), path);
     }},
    {"LinkToItself",
     [](const std::string& path, const std::string&) { fs::create_symlink(path, path); }},
    {"Folder", [](const std::string& path, const std::string&) { fs::create_directory(path); }},
    {"Device",
     [](const std::string& path, const std::string&) { fs::create_symlink("/dev/zero", path); }},
};

class HostileFolderTest : public ::testing::TestWithParam<Trick> {
 protected:
  HostileFolderTest() {
    root_ = *CheckpointRoot::Open(&FileSystem::System(), dir_ + "/c");
    for (const uint64_t step : {1, 2}) {
      EXPECT_TRUE(CommitTiny(&FileSystem::System(), root_.get(), 1, step, 1).ok());
    }
  }

  // The content is the right one wherever the name leads, so that only the way there is wrong.
  void Replace(const std::string& path) {
    fs::rename(path, dir_ + "/outside");
    GetParam().play(path, dir_ + "/outside");
  }
  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  std::unique_ptr<CheckpointRoot> root_;
};

TEST_P(HostileFolderTest, AShardFileIsRefused) {
  const auto folder = root_->OpenFolderAt(root_->StepPath(2));
  ASSERT_TRUE(folder.ok());
  const Manifest manifest = *ReadManifest(**folder);
  Replace(root_->StepPath(2) + "/" + kShards);
  for (const VerifyDepth depth : {VerifyDepth::kStructure, VerifyDepth::kContent}) {
    const VerifyReport report = VerifyStep(**folder, depth);
    EXPECT_FALSE(report.ok());
    EXPECT_FALSE(report.unreadable);  // damage, not a disk that is away
    EXPECT_THAT(absl::StrJoin(report.problems, "\n"), HasSubstr(kShards));
  }
  ObjectReader reader(folder->get(), &manifest);
  int refused = 0;
  for (const StoredObject& object : manifest.objects()) {
    if (manifest.files(object.shards(0).file()).name() != kShards) continue;
    std::vector<std::byte> bytes(object.shards(0).bytes());
    refused += !reader.Read(object, 0, bytes.size() / sizeof(float), bytes).ok();
  }
  EXPECT_GT(refused, 0);
  // It is set aside as it is, and the one before is taken.
  EXPECT_EQ(*root_->NewestVerified(VerifyDepth::kStructure), 1u);
  EXPECT_TRUE(fs::exists(dir_ + "/outside"));
}

TEST_P(HostileFolderTest, AManifestIsRefused) {
  Replace(root_->StepPath(2) + "/" + kManifestName);
  const auto folder = root_->OpenFolderAt(root_->StepPath(2));
  ASSERT_TRUE(folder.ok());
  EXPECT_FALSE(ReadManifest(**folder).ok());
  EXPECT_FALSE(VerifyStep(**folder, VerifyDepth::kContent).ok());
  EXPECT_EQ(*root_->NewestVerified(VerifyDepth::kStructure), 1u);
}

TEST_P(HostileFolderTest, AStepIsNoStep) {
  Replace(root_->StepPath(2));
  if (std::string(GetParam().name) == "Folder") {
    EXPECT_EQ(*root_->NewestVerified(VerifyDepth::kStructure), 1u);
    return;
  }
  EXPECT_THAT(*root_->Steps(), ::testing::ElementsAre(1));
  EXPECT_FALSE(root_->OpenFolderAt(root_->StepPath(2)).ok());
  EXPECT_TRUE(absl::IsNotFound(root_->Remove(2, true)));
  EXPECT_TRUE(fs::exists(dir_ + "/outside/" + kManifestName));
}

// Trash, quarantine, staging and pins are opened below the root: nothing is moved, written or
// deleted where a link in their place leads.
TEST_P(HostileFolderTest, TheFoldersOfARootAreNotFollowed) {
  fs::create_directory(dir_ + "/outside");
  std::ofstream(dir_ + "/outside/precious") << "x";
  for (const char* name : {kTrash, kQuarantine, kStagingFolder, kPins}) {
    const std::string path = root_->path() + "/" + name;
    fs::remove_all(path);
    GetParam().play(path, dir_ + "/outside");
  }
  if (std::string(GetParam().name) == "Folder") return;
  EXPECT_FALSE(root_->Pin(1, "").ok());
  EXPECT_FALSE(root_->Remove(1, true).ok());
  EXPECT_FALSE(root_->Quarantine(1, "why").ok());
  EXPECT_FALSE(root_->BeginStaging(3, 1).ok());
  EXPECT_FALSE(root_->Sweep(0).ok());
  EXPECT_FALSE(OpenStaging(&FileSystem::System(), root_->path() + "/.staging/precious").ok());
  EXPECT_THAT(*root_->Steps(), ::testing::ElementsAre(1, 2));
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_ + "/outside"), fs::directory_iterator()), 1);
}

INSTANTIATE_TEST_SUITE_P(Tricks, HostileFolderTest, ::testing::ValuesIn(kTricks),
                         [](const auto& trick) { return std::string(trick.param.name); });

TEST(ConfinedPaths, OnlyPathsBelowTheRootAreOpened) {
  const ScratchFolder scratch;
  const std::string& dir = scratch.path();
  fs::create_directories(dir + "/c/.staging/a");
  fs::create_directories(dir + "/other/.staging/a");
  const auto root = FileSystem::System().OpenFolder(dir + "/c");
  EXPECT_TRUE(OpenBelow(**root, dir + "/c/.staging/a").ok());
  for (const std::string& path :
       {dir + "/other", dir + "/c/../other", dir + "/c", dir + "/c/", dir + "/c//.staging",
        dir + "/c.staging", std::string("/etc"), std::string()}) {
    EXPECT_FALSE(OpenBelow(**root, path).ok()) << path;
  }
  FileSystem& files = FileSystem::System();
  EXPECT_TRUE(OpenStaging(&files, dir + "/c/.staging/a").ok());
  for (const std::string& path :
       {dir + "/c/../other/.staging/a", dir + "/c/.staging/..", dir + "/c/.staging/",
        dir + "/c/staging/a", dir + "/c/.staging", std::string("a"), std::string()}) {
    EXPECT_FALSE(OpenStaging(&files, path).ok()) << path;
  }
}

}  // namespace
}  // namespace moesaic
