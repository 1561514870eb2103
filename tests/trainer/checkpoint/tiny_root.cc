#include "tests/trainer/checkpoint/tiny_root.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <span>
#include <vector>

#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

// Of all names and bytes below a folder.
void AddContent(const Folder& folder, Xxh3Stream* hash) {
  const auto add = [hash](const std::string& text) {
    hash->Update(std::as_bytes(std::span(text)));
    hash->Update(std::as_bytes(std::span("", 1)));
  };
  const auto entries = folder.List();
  ASSERT_TRUE(entries.ok());
  for (const FolderEntry& entry : *entries) {
    add(entry.name);
    if (entry.kind == EntryKind::kFolder) {
      const auto below = folder.OpenFolder(entry.name);
      ASSERT_TRUE(below.ok());
      AddContent(**below, hash);
      add("/");
      continue;
    }
    const auto file = folder.Open(entry.name);
    ASSERT_TRUE(file.ok());
    std::vector<std::byte> bytes((*file)->size());
    ASSERT_TRUE((*file)->ReadAt(0, bytes).ok());
    add(std::to_string(bytes.size()));
    hash->Update(bytes);
  }
}

}  // namespace

std::unique_ptr<CheckpointRoot> OpenRoot(FileSystem* files) {
  auto root = CheckpointRoot::Open(files, kRoot);
  EXPECT_TRUE(root.ok()) << root.status();
  return *std::move(root);
}

KeepSpec KeepLast(uint32_t last) {
  KeepSpec keep;
  keep.set_last(last);
  return keep;
}

void ExpectAllVerify(FileSystem* files, const std::string& where) {
  const auto root = files->OpenFolder(kRoot);
  ASSERT_TRUE(root.ok());
  const auto steps = ListSteps(**root);
  ASSERT_TRUE(steps.ok());
  // Tests that stop a save at each of its calls look at the same bytes thousands of times, and to
  // verify them once is enough.
  static std::set<std::string> verified;
  for (uint64_t step : *steps) {
    const auto folder = (*root)->OpenFolder(StepFolderName(step));
    ASSERT_TRUE(folder.ok());
    Xxh3Stream content;
    content.Update(std::as_bytes(std::span((*folder)->path())));
    AddContent(**folder, &content);
    if (verified.contains(content.Digest())) continue;
    const VerifyReport report = VerifyStep(**folder, VerifyDepth::kContent);
    EXPECT_THAT(report.problems, testing::IsEmpty()) << where << ", step " << step;
    if (report.problems.empty()) verified.insert(content.Digest());
  }
}

}  // namespace moesaic
