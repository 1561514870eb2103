#include "trainer/checkpoint/format/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

// One committed step of two ranks, and ways to damage it.
class C6 : public ::testing::Test {
 protected:
  C6() {
    const auto root = *CheckpointRoot::Open(&files_, "/c");
    path_ = CommitTiny(&files_, root.get(), 2, 9, 1)->path;
    folder_ = *files_.OpenFolder(path_);
    manifest_ = *ReadManifest(*folder_);
  }

  std::string Path(const StoredFile& file) const { return path_ + "/" + file.name(); }

  std::string Problems(VerifyDepth depth = VerifyDepth::kContent) {
    return absl::StrJoin(VerifyStep(*folder_, depth).problems, "\n");
  }

  // Labels of the objects that have a shard in a file, at a byte of it (any byte: SIZE_MAX).
  std::vector<std::string> LabelsAt(const std::string& file, size_t at) const {
    std::vector<std::string> labels;
    for (const StoredObject& object : manifest_.objects()) {
      for (const Shard& shard : object.shards()) {
        if (manifest_.files(static_cast<int>(shard.file())).name() != file) continue;
        if (at == SIZE_MAX || (at >= shard.begin() && at < shard.begin() + shard.bytes())) {
          labels.push_back(ObjectLabel(object.kind(), object.name()));
        }
      }
    }
    return labels;
  }

  void ExpectNamed(const std::string& problems, const std::string& file,
                   const std::vector<std::string>& labels, const std::string& what) {
    EXPECT_THAT(problems, HasSubstr(file)) << what;
    const bool named = std::ranges::any_of(
        labels, [&](const std::string& label) { return absl::StrContains(problems, label); });
    EXPECT_TRUE(named) << what << ": " << problems;
  }

  MemoryFileSystem files_;
  std::string path_;
  std::unique_ptr<Folder> folder_;
  Manifest manifest_;
};

TEST_F(C6, AnUndamagedStepHasNoProblems) {
  const VerifyReport report = VerifyStep(*folder_, VerifyDepth::kContent);
  EXPECT_THAT(report.problems, IsEmpty());
  EXPECT_EQ(report.step, 9u);
  EXPECT_EQ(report.objects, static_cast<uint64_t>(TinyCatalog().size()) * 3);
  EXPECT_TRUE(VerifyStatus(*folder_, report).ok());
}

TEST_F(C6, AFlippedBitAnywhereIsFoundWithFileAndObject) {
  for (const StoredFile& file : manifest_.files()) {
    const std::string good = files_.Read(Path(file));
    for (size_t at = 0; at < good.size(); at += 13) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
      files_.Write(Path(file), bad);
      std::vector<std::string> labels = LabelsAt(file.name(), at);
      if (labels.empty()) labels = LabelsAt(file.name(), SIZE_MAX);
      ExpectNamed(Problems(), file.name(), labels, "byte " + std::to_string(at));
    }
    files_.Write(Path(file), good);
  }
  EXPECT_EQ(Problems(), "");
}

TEST_F(C6, ATruncatedOrLongerFileIsFoundByItsSize) {
  for (const StoredFile& file : manifest_.files()) {
    const std::string good = files_.Read(Path(file));
    for (size_t size : {size_t{0}, size_t{7}, good.size() / 2, good.size() - 1}) {
      files_.Write(Path(file), good.substr(0, size));
      ExpectNamed(Problems(VerifyDepth::kStructure), file.name(), LabelsAt(file.name(), SIZE_MAX),
                  "size " + std::to_string(size));
    }
    files_.Write(Path(file), good + "x");
    EXPECT_THAT(Problems(VerifyDepth::kStructure), HasSubstr(file.name()));
    files_.Write(Path(file), good);
  }
}

TEST_F(C6, AMissingFileIsFound) {
  for (const StoredFile& file : manifest_.files()) {
    const std::string good = files_.Read(Path(file));
    files_.Remove(Path(file));
    ExpectNamed(Problems(VerifyDepth::kStructure), file.name(), LabelsAt(file.name(), SIZE_MAX),
                "missing");
    files_.Write(Path(file), good);
  }
}

TEST_F(C6, SwappedAndDuplicatedFilesAreFound) {
  const std::string a = path_ + "/x-L001-E0000.safetensors";
  const std::string b = path_ + "/x-L001-E0001.safetensors";
  const std::string content_a = files_.Read(a), content_b = files_.Read(b);
  ASSERT_EQ(content_a.size(), content_b.size());
  files_.Write(a, content_b);
  EXPECT_THAT(Problems(VerifyDepth::kStructure),
              HasSubstr("file x-L001-E0000.safetensors: it does not hold "
                        "master/layers.1.moe.experts.0.gate_up where the manifest says"));
  files_.Write(b, content_a);
  EXPECT_THAT(Problems(VerifyDepth::kStructure), HasSubstr("x-L001-E0001.safetensors"));
}

TEST_F(C6, TwoShardsSwappedWithinAFileAreFound) {
  const std::string path = path_ + "/x-L001-E0000.safetensors";
  std::vector<const Shard*> equal;
  for (const StoredObject& object : manifest_.objects()) {
    if (object.name() == "layers.1.moe.experts.0.down") equal.push_back(&object.shards(0));
  }
  ASSERT_EQ(equal.size(), 3u);
  std::string content = files_.Read(path);
  for (uint64_t i = 0; i < equal[0]->bytes(); ++i) {
    std::swap(content[equal[0]->begin() + i], content[equal[1]->begin() + i]);
  }
  files_.Write(path, content);
  const std::string problems = Problems();
  EXPECT_THAT(problems, HasSubstr("master/layers.1.moe.experts.0.down do not match"));
  EXPECT_THAT(problems, HasSubstr("adam_m/layers.1.moe.experts.0.down do not match"));
}

TEST_F(C6, AFileThatNobodyListsIsFound) {
  files_.Write(path_ + "/r00009-000.safetensors", "x");
  EXPECT_EQ(Problems(VerifyDepth::kStructure),
            "file r00009-000.safetensors: the manifest does not list it");
}

TEST_F(C6, AnyDamageOfTheManifestIsFound) {
  const std::string path = path_ + "/MANIFEST.pb";
  const std::string good = files_.Read(path);
  for (size_t at = 0; at < good.size(); at += 11) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 4);
    files_.Write(path, bad);
    ASSERT_THAT(Problems(VerifyDepth::kStructure), HasSubstr("MANIFEST.pb")) << at;
    files_.Write(path, good.substr(0, at));
    ASSERT_THAT(Problems(VerifyDepth::kStructure), HasSubstr("MANIFEST.pb")) << at;
  }
  files_.Remove(path);
  EXPECT_THAT(Problems(VerifyDepth::kStructure), HasSubstr("MANIFEST.pb"));
}

TEST_F(C6, ThreadsGiveTheSameReportAndProgressReachesTheTotal) {
  for (const StoredFile& file : manifest_.files()) {
    std::string content = files_.Read(Path(file));
    content.back() = static_cast<char>(content.back() ^ 1);
    files_.Write(Path(file), content);
  }
  const std::string alone = Problems();
  uint64_t last = 0, whole = 0;
  VerifyOptions options;
  options.threads = 4;
  options.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_GE(done, last);
    last = done;
    whole = total;
  };
  const VerifyReport report = VerifyStep(*folder_, options);
  EXPECT_EQ(absl::StrJoin(report.problems, "\n"), alone);
  EXPECT_FALSE(report.unreadable);
  EXPECT_EQ(last, whole);
  EXPECT_EQ(whole, report.bytes);
}

TEST_F(C6, ACancelledVerificationSaysNothingOfTheContent) {
  const std::atomic<bool> cancelled = true;
  VerifyOptions options;
  options.cancelled = &cancelled;
  const VerifyReport report = VerifyStep(*folder_, options);
  EXPECT_TRUE(report.unreadable);
  EXPECT_TRUE(absl::IsUnavailable(VerifyStatus(*folder_, report)));
}

// What a forged manifest claims, with a trailer that fits.
struct Forgery {
  const char* name;
  void (*forge)(Manifest* manifest);
  const char* reason;
};

class ForgedManifestTest : public C6, public ::testing::WithParamInterface<Forgery> {};

TEST_P(ForgedManifestTest, IsRefused) {
  GetParam().forge(&manifest_);
  files_.Write(path_ + "/MANIFEST.pb", EncodeManifest(manifest_));
  EXPECT_THAT(Problems(VerifyDepth::kStructure), HasSubstr(GetParam().reason));
}

INSTANTIATE_TEST_SUITE_P(
    All, ForgedManifestTest,
    ::testing::Values(
        Forgery{"Version", [](Manifest* m) { m->set_format_version(2); }, "format version 2"},
        Forgery{"Path", [](Manifest* m) { m->mutable_files(0)->set_name("../../etc/passwd"); },
                "is no name for a file"},
        Forgery{"Absolute", [](Manifest* m) { m->mutable_files(0)->set_name("/etc/passwd"); },
                "is no name for a file"},
        Forgery{"Twice", [](Manifest* m) { m->mutable_files(0)->set_name(m->files(1).name()); },
                "comes twice"},
        Forgery{"Shape",
                [](Manifest* m) {
                  m->mutable_objects(0)->set_shape(0, 1ull << 62);
                  m->mutable_objects(0)->set_shape(1, 1ull << 62);
                },
                "is not valid"},
        Forgery{
            "Begin",
            [](Manifest* m) { m->mutable_objects(0)->mutable_shards(0)->set_begin(UINT64_MAX); },
            "are outside file"},
        Forgery{"File",
                [](Manifest* m) { m->mutable_objects(0)->mutable_shards(0)->set_file(999); },
                "file number 999"},
        Forgery{"Bytes",
                [](Manifest* m) { m->mutable_objects(0)->mutable_shards(0)->set_bytes(1); },
                "cannot have 1 bytes"},
        Forgery{"Box",
                [](Manifest* m) {
                  Box* box = m->mutable_objects(0)->mutable_shards(0)->mutable_box();
                  box->set_offset(0, UINT64_MAX);
                },
                "outside the tensor's shape"},
        Forgery{"Hash",
                [](Manifest* m) { m->mutable_objects(0)->mutable_shards(0)->set_xxh3("x"); },
                "no checksum"},
        Forgery{"Moved",
                [](Manifest* m) { m->mutable_objects(0)->mutable_shards(0)->set_begin(0); },
                "does not hold master/embedding"},
        Forgery{"Step", [](Manifest* m) { m->mutable_state()->set_step(8); },
                "the folder is named after step 9"},
        Forgery{"Mixed", [](Manifest* m) { m->mutable_objects(3)->set_step(8); }, "is of step 8"},
        Forgery{"Job", [](Manifest* m) { m->mutable_spec()->mutable_model()->set_hidden(16); },
                "catalog hash"},
        Forgery{"Missing", [](Manifest* m) { m->mutable_objects()->RemoveLast(); }, "is missing"}),
    [](const auto& forgery) { return forgery.param.name; });

}  // namespace
}  // namespace moesaic
