// Hugging Face folders in memory, for the tests of their conversion.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "trainer/checkpoint/convert/architecture.h"
#include "trainer/checkpoint/convert/import.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {

// A file of tests/peers/golden/ARCHITECTURE.
inline std::string GoldenFile(const std::string& architecture, const char* name) {
  std::ifstream file(absl::StrCat("tests/peers/golden/", architecture, "/", name),
                     std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Puts the model of tests/peers/golden/ARCHITECTURE into a folder that is there.
inline void WriteGoldenFolder(MemoryFileSystem* files, const std::string& architecture,
                              const std::string& folder) {
  for (const char* name : {"config.json", "model.safetensors"}) {
    files->Write(absl::StrCat(folder, "/", name), GoldenFile(architecture, name));
  }
}

inline absl::Status Import(FileSystem* files, const std::string& from, const std::string& to) {
  return ImportFolder(files, {from, to, "", "test", {}, {}}).status();
}

inline Manifest NewestManifest(FileSystem* files, const std::string& root) {
  return *ReadManifest(*OpenCheckpoint(files, root)->folder);
}

// Of every object of the newest step, by its name.
inline std::map<std::string, std::string> Checksums(FileSystem* files, const std::string& root) {
  const Manifest manifest = NewestManifest(files, root);
  std::map<std::string, std::string> checksums;
  for (const StoredObject& object : manifest.objects()) {
    checksums[object.name()] = object.shards(0).xxh3();
  }
  return checksums;
}

// A change of a job, and what is said of it.
struct JobChange {
  void (*change)(JobSpec* spec);
  const char* reason;
};

// Each change leaves `spec`, which `architecture` can say, without a counterpart in it.
inline void ExpectNoCounterpart(const JobSpec& spec, const char* architecture,
                                std::span<const JobChange> changes) {
  ASSERT_TRUE(ArchitectureOf(spec, architecture).ok());
  for (const JobChange& wrong : changes) {
    SCOPED_TRACE(wrong.reason);
    JobSpec changed = spec;
    wrong.change(&changed);
    const absl::Status refused = ArchitectureOf(changed, architecture).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
    EXPECT_THAT(refused.message(), ::testing::HasSubstr(wrong.reason));
  }
}

}  // namespace moesaic
