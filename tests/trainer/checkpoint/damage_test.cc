// C6, without leaving anything out: every byte of a small checkpoint is flipped in turn.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

class DamageTest : public ::testing::Test {
 protected:
  DamageTest() {
    const auto root = *CheckpointRoot::Open(&files_, "/c");
    files_.MakeFolders("/data").IgnoreError();
    files_.Write("/data/bpe.model", "some tokens");
    const auto staging = root->BeginStaging(9, 1);
    const auto reports = PersistTiny(&files_, *staging, 2, 9, 1);
    CommitRequest request = TinyRequest(*staging, *reports, 1);
    request.tokenizer = "/data/bpe.model";
    path_ = root->Commit(request)->path;
    folder_ = *files_.OpenFolder(path_);
    manifest_ = *ReadManifest(*folder_);
    for (const StoredObject& object : manifest_.objects()) {
      for (const Shard& shard : object.shards()) {
        const std::string& file = manifest_.files(static_cast<int>(shard.file())).name();
        labels_[file][shard.begin()] = {shard.begin() + shard.bytes(),
                                        ObjectLabel(object.kind(), object.name())};
      }
    }
  }

  // The object at a byte of a file; empty: the header.
  std::string LabelAt(const std::string& file, uint64_t at) const {
    const auto& shards = labels_.at(file);
    auto after = shards.upper_bound(at);
    if (after == shards.begin()) return "";
    --after;
    return at < after->second.first ? after->second.second : "";
  }

  MemoryFileSystem files_;
  std::string path_;
  std::unique_ptr<Folder> folder_;
  Manifest manifest_;
  std::map<std::string, std::map<uint64_t, std::pair<uint64_t, std::string>>> labels_;
};

TEST_F(DamageTest, C6_EveryFlippedByteIsFoundWithFileAndObject) {
  uint64_t bytes = 0;
  const std::vector<std::string> names = files_.List(path_);
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(path_, "/", name);
    const std::string good = files_.Read(path);
    std::string bad = good;
    for (size_t at = 0; at < good.size(); ++at, ++bytes) {
      bad[at] = static_cast<char>(good[at] ^ (1 << (at % 8)));
      files_.Write(path, bad);
      bad[at] = good[at];
      const VerifyReport report = VerifyStep(*folder_, VerifyDepth::kContent);
      const std::string problems = absl::StrJoin(report.problems, "\n");
      ASSERT_TRUE(absl::StrContains(problems, name)) << name << " byte " << at << ": " << problems;
      if (!labels_.contains(name)) continue;
      const std::string label = LabelAt(name, at);
      ASSERT_TRUE(label.empty() ||
                  problems == absl::StrCat("file ", name, ": the bytes of ", label,
                                           " do not match their checksum") ||
                  absl::StrContains(problems, absl::StrCat(label, " [")))
          << name << " byte " << at << " of " << label << ": " << problems;
    }
    files_.Write(path, good);
  }
  EXPECT_TRUE(VerifyStep(*folder_, VerifyDepth::kContent).ok());
  EXPECT_GT(bytes, 20000u);
}

}  // namespace
}  // namespace moesaic
