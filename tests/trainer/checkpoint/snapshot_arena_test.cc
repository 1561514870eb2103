#include "trainer/checkpoint/format/snapshot_arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <utility>
#include <vector>

#include "tests/base/scratch_folder.h"
#include "tests/trainer/checkpoint/boxes.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

class SnapshotArenaTest : public ::testing::Test {
 protected:
  static SnapshotIndex Index(uint64_t rows) {
    SnapshotIndex index;
    index.set_job("test");
    index.mutable_state()->set_step(7);
    for (const char* name : {"a", "b"}) {
      ArenaObject* object = index.add_objects();
      object->set_kind(MASTER);
      object->set_name(name);
      object->set_element(ELEMENT_F32);
      object->add_shape(rows);
      *object->mutable_box() = MakeBox({0}, {rows});
    }
    return index;
  }

  std::unique_ptr<SnapshotWriter> Write(uint64_t rows, int value) {
    auto writer = SnapshotWriter::Create(path_, Index(rows));
    EXPECT_TRUE(writer.ok()) << writer.status();
    for (int i = 0; i < 2; ++i) {
      const std::vector<std::byte> bytes(rows * sizeof(float), static_cast<std::byte>(value + i));
      (*writer)->CopyObject(i, bytes);
    }
    return *std::move(writer);
  }

  static std::vector<std::byte> ReadAll(const SnapshotReader& reader, int i) {
    std::vector<std::byte> all;
    const absl::Status status =
        reader.Read(i, 0, UINT64_MAX, [&](uint64_t begin, std::span<const std::byte> bytes) {
          EXPECT_EQ(begin, all.size());
          all.insert(all.end(), bytes.begin(), bytes.end());
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
    return all;
  }

  const ScratchFolder scratch_;
  const std::string path_ = scratch_ / "arena";
};

TEST_F(SnapshotArenaTest, TheReaderSeesWhatTheWriterWrote) {
  ASSERT_TRUE(Write(5, 1)->Finish().ok());
  const auto reader = SnapshotReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->index().state().step(), 7u);
  for (int i = 0; i < 2; ++i) {
    const std::vector<std::byte> bytes = ReadAll(**reader, i);
    ASSERT_EQ(bytes.size(), 20u);
    EXPECT_EQ((*reader)->index().objects(i).offset() % 64, 0u);
    for (std::byte byte : bytes) EXPECT_EQ(static_cast<int>(byte), 1 + i);
  }
}

TEST_F(SnapshotArenaTest, AnUnfinishedSnapshotIsRefused) {
  auto writer = Write(5, 1);
  EXPECT_THAT(SnapshotReader::Open(path_).status().message(), HasSubstr("not finished"));
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_TRUE(SnapshotReader::Open(path_).ok());
  // Used again: the old content must not pass for the new one.
  writer = Write(5, 3);
  EXPECT_TRUE(absl::IsDataLoss(SnapshotReader::Open(path_).status()));
}

TEST_F(SnapshotArenaTest, AReaderKeepsItsMappingWhenTheSizeChanges) {
  ASSERT_TRUE(Write(5000, 1)->Finish().ok());
  const auto reader = SnapshotReader::Open(path_);
  ASSERT_TRUE(reader.ok());
  ASSERT_TRUE(Write(5, 9)->Finish().ok());
  EXPECT_EQ(static_cast<int>(ReadAll(**reader, 1).back()), 2);
}

TEST_F(SnapshotArenaTest, EveryTruncationAndEveryFlippedBitOfTheIndexIsFound) {
  ASSERT_TRUE(Write(5, 1)->Finish().ok());
  std::ifstream in(path_, std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), {});
  const auto open = [&](const std::string& content) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << content;
    return SnapshotReader::Open(path_).status();
  };
  ASSERT_TRUE(open(good).ok());
  uint64_t index_bytes = 0;
  std::memcpy(&index_bytes, good.data() + 16, 8);
  // Between the index and the objects there is room.
  for (size_t size = 0; size + 64 < good.size(); size += size < 32 + index_bytes ? 1 : 61) {
    EXPECT_TRUE(absl::IsDataLoss(open(good.substr(0, size)))) << size;
  }
  for (size_t at = 0; at < 32 + index_bytes; ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    EXPECT_TRUE(absl::IsDataLoss(open(bad))) << at;
  }
}

// Header and index are found at Open; the objects' bytes when they are read, and only they; what
// lies between is no part of the snapshot.
TEST_F(SnapshotArenaTest, C6_EveryFlippedByteOfTheFileIsFound) {
  ASSERT_TRUE(Write(300000, 1)->Finish().ok());
  std::vector<std::pair<uint64_t, uint64_t>> places;
  {
    const auto reader = SnapshotReader::Open(path_);
    for (const ArenaObject& object : (*reader)->index().objects()) {
      places.push_back({object.offset(), object.bytes()});
    }
  }
  std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
  const auto flip = [&](uint64_t at) {
    char byte = 0;
    file.seekg(static_cast<std::streamoff>(at)).get(byte);
    file.seekp(static_cast<std::streamoff>(at)).put(static_cast<char>(byte ^ 4)).flush();
  };
  const auto sink = [](uint64_t, std::span<const std::byte>) { return absl::OkStatus(); };
  for (int i = 0; i < 2; ++i) {
    const auto [offset, bytes] = places[static_cast<size_t>(i)];
    for (uint64_t at : {uint64_t{0}, kSnapshotChunk - 1, kSnapshotChunk, bytes - 1}) {
      flip(offset + at);
      const auto reader = SnapshotReader::Open(path_);
      ASSERT_TRUE(reader.ok());
      const absl::Status status = (*reader)->Read(i, at, at + 1, sink);
      EXPECT_TRUE(absl::IsDataLoss(status)) << at;
      EXPECT_THAT(status.message(), HasSubstr(i == 0 ? "object master/a" : "object master/b"));
      EXPECT_TRUE((*reader)->Read(1 - i, 0, bytes, sink).ok());
      // Only the chunks that are asked for are looked at.
      const uint64_t other = at < kSnapshotChunk ? kSnapshotChunk : 0;
      EXPECT_TRUE((*reader)->Read(i, other, other + 1, sink).ok());
      flip(offset + at);
    }
  }
}

TEST_F(SnapshotArenaTest, NoRoomIsAnErrorAndLeavesNothing) {
  EXPECT_FALSE(SnapshotWriter::Create(path_, Index(1ull << 58)).ok());
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_TRUE(absl::IsNotFound(SnapshotReader::Open(path_).status()));
}

}  // namespace
}  // namespace moesaic
