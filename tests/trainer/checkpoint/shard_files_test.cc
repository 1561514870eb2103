#include "trainer/checkpoint/format/shard_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/base/scratch_folder.h"
#include "tests/trainer/checkpoint/boxes.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/safetensors.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

class ShardFilesTest : public ::testing::Test {
 protected:
  ShardFilesTest() { folder_ = *FileSystem::System().MakeFolders(path_); }

  ShardSource Source(const std::string& name, std::vector<uint64_t> shape, Box box, int expert) {
    ShardSource source;
    source.name = name;
    source.element = ELEMENT_U8;
    source.shape = std::move(shape);
    source.box = std::move(box);
    source.layer = expert < 0 ? -1 : 2;
    source.expert = expert;
    const size_t bytes = *CheckedElements(AsShape(source.box.length()));
    source.produce = [bytes, value = static_cast<std::byte>(next_++)](const ByteSink& sink) {
      const std::vector<std::byte> content(bytes, value);
      const size_t half = bytes / 2;
      absl::Status status = sink(std::span(content).first(half));
      return status.ok() ? sink(std::span(content).subspan(half)) : status;
    };
    return source;
  }

  const ScratchFolder scratch_;
  const std::string path_ = scratch_ / "shards";
  std::unique_ptr<Folder> folder_;
  int next_ = 1;
};

TEST_F(ShardFilesTest, GroupsWritesAndReportsShards) {
  const std::vector<ShardSource> sources = {
      Source("a", {10}, MakeBox({0}, {10}), -1),
      Source("b", {4, 5}, MakeBox({2, 0}, {2, 5}), -1),
      Source("c", {300}, MakeBox({0}, {300}), -1),
      Source("e.gate_up", {7}, MakeBox({0}, {7}), 17),
      Source("e.down", {3}, MakeBox({0}, {3}), 17),
  };
  const auto written =
      WriteShardFiles(sources, {.rank = 3, .step = 9, .max_file_bytes = 25}, folder_.get());
  ASSERT_TRUE(written.ok()) << written.status();
  std::vector<std::string> names;
  for (const StoredFile& file : written->files) names.push_back(file.name());
  EXPECT_THAT(names, testing::ElementsAre("r00003-000.safetensors", "r00003-001.safetensors",
                                          "x-L002-E0017.safetensors"));
  ASSERT_EQ(written->objects.size(), 5u);
  int value = 1;
  for (const StoredObject& object : written->objects) {
    EXPECT_EQ(object.step(), 9u);
    const Shard& shard = object.shards(0);
    const StoredFile& file = written->files[shard.file()];
    const auto open = folder_->Open(file.name());
    ASSERT_TRUE(open.ok());
    EXPECT_EQ((*open)->size(), file.bytes());
    const auto header = ReadSafetensorsHeader(**open);
    ASSERT_TRUE(header.ok()) << header.status();
    const SafetensorsTensor* tensor = header->Find(ShardTensorName(object, shard.box()));
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->begin, shard.begin());
    std::vector<std::byte> bytes(shard.bytes());
    ASSERT_TRUE((*open)->ReadAt(shard.begin(), bytes).ok());
    EXPECT_EQ(Xxh3(bytes), shard.xxh3());
    EXPECT_EQ(static_cast<int>(bytes[0]), value++);
  }
  EXPECT_EQ(ShardTensorName(written->objects[1], written->objects[1].shards(0).box()),
            "master/b@2,0");
  const auto whole = ReadWholeFile(*folder_, names[2], 1 << 20);
  EXPECT_EQ(Xxh3(std::as_bytes(std::span<const char>(*whole))), written->files[2].xxh3());
}

TEST_F(ShardFilesTest, AFailedSourceLeavesNoFile) {
  std::vector<ShardSource> sources = {Source("a", {10}, MakeBox({0}, {10}), -1)};
  sources[0].produce = [](const ByteSink&) { return absl::UnavailableError("lost"); };
  const auto written = WriteShardFiles(sources, {}, folder_.get());
  EXPECT_THAT(written.status().message(), HasSubstr("r00000-000.safetensors: lost"));
  EXPECT_TRUE(folder_->List()->empty());
}

TEST_F(ShardFilesTest, AFileOfAnotherWriterIsNotReplaced) {
  const std::vector<ShardSource> sources = {Source("a", {10}, MakeBox({0}, {10}), -1)};
  ASSERT_TRUE(WriteShardFiles(sources, {}, folder_.get()).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(WriteShardFiles(sources, {}, folder_.get()).status()));
}

TEST_F(ShardFilesTest, NamesAreConfined) {
  for (const std::string& name : {std::string(".."), std::string("a/b"), std::string(""),
                                  std::string("/etc/passwd"), std::string("a\0b", 3)}) {
    EXPECT_TRUE(absl::IsInvalidArgument(folder_->Open(name).status())) << name;
    EXPECT_TRUE(absl::IsInvalidArgument(folder_->Create(name).status())) << name;
  }
  std::filesystem::create_symlink("/etc/passwd", path_ + "/link");
  EXPECT_FALSE(folder_->Open("link").ok());
}

}  // namespace
}  // namespace moesaic
