// MemoryFileSystem: a file system in memory that can lose power. It knows what is on stable storage
// (file content as of WritableFile::Sync, names as of Folder::Sync) and what is only in the cache,
// and counts the calls that change something, so that a test can fail or cut any one of them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

// What a power cut leaves of changes that were not synced.
enum class PowerCut {
  kLoseAll,        // neither content nor names
  kLoseContent,    // names stay, files are cut to what was synced
  kLoseNothing,    // a killed process: the cache survives
};

// Thread-compatible.
class MemoryFileSystem : public FileSystem {
 public:
  MemoryFileSystem();
  ~MemoryFileSystem() override;
  MemoryFileSystem(MemoryFileSystem&&) = default;
  MemoryFileSystem& operator=(MemoryFileSystem&&) = default;
  // Another one with the same content, none of it in the cache only.
  MemoryFileSystem Copy() const;

  absl::StatusOr<std::unique_ptr<Folder>> OpenFolder(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<Folder>> MakeFolders(const std::string& path) override;

  // Calls so far that change something (make, create, write, sync, rename, remove).
  int64_t calls() const;
  // From call number `call` (0-based) on, every changing call does nothing and fails.
  void StopAt(int64_t call);
  // Only call number `call` fails, with `status`; a write has then written half of its bytes.
  void FailAt(int64_t call, absl::Status status);

  // Loses what `cut` says and works again: what the next process finds. Open files and folders must
  // not be used any more.
  void Restart(PowerCut cut);

  // Content of a file, and its replacement, for tests that damage one.
  std::string Read(const std::string& path);
  void Write(const std::string& path, std::string content);
  void Remove(const std::string& path);
  std::vector<std::string> List(const std::string& path);

  struct Node;
  struct State;

 private:
  std::shared_ptr<State> state_;
};

}  // namespace moesaic
