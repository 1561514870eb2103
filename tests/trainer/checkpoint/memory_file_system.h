// MemoryFileSystem: a file system in memory that can lose power. It knows what is on stable storage
// and what is only in the cache, and counts the calls that change something, so that a test can
// fail or cut any one of them.
//
// The model is that of a journaling file system: content is stable as of WritableFile::Sync; a
// change of names (make, create, rename, link, remove) is one record, made stable whole by the Sync
// of a folder that it touches, with the earlier records that it builds on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

// What a power cut leaves of changes that were not synced.
enum class PowerCut {
  kLoseAll,      // neither content nor names
  kLoseContent,  // names stay, files are cut to what was synced
  kLoseSome,     // a random part of the records, and of each file a random part, perhaps zeros
  kLoseNothing,  // a killed process: the cache survives
};

// Thread-compatible.
class MemoryFileSystem : public FileSystem {
 public:
  MemoryFileSystem();
  ~MemoryFileSystem() override;
  MemoryFileSystem(MemoryFileSystem&&) = default;
  MemoryFileSystem& operator=(MemoryFileSystem&&) = default;
  // Another one with the same content, none of it in the cache only. Links stay links.
  MemoryFileSystem Copy() const;
  // The same disk as another process sees it: with its own count of calls, stop and failure.
  MemoryFileSystem OtherProcess() const;

  absl::StatusOr<std::unique_ptr<Folder>> OpenFolder(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<Folder>> MakeFolders(const std::string& path) override;

  // Calls of this process so far that change something (make, create, write, sync, rename, link,
  // remove).
  int64_t calls() const;
  // From call number `call` (0-based) on, every changing call does nothing and fails; the first,
  // when it is a write, has written half of its bytes.
  void StopAt(int64_t call);
  // Only call number `call` fails, with `status`; a write has then written half of its bytes.
  void FailAt(int64_t call, absl::Status status);
  // Whether the call of StopAt or FailAt has been made.
  bool Reached() const;
  // Without hard links, as some network file systems are.
  void RefuseLinks();

  // Loses what `cut` says and works again: what the next process finds. Open files and folders must
  // not be used any more. `seed` is that of kLoseSome.
  void Restart(PowerCut cut, uint32_t seed = 0);

  // Content of a file, and its replacement (of all its links), for tests that damage one.
  std::string Read(const std::string& path);
  void Write(const std::string& path, std::string content);
  void Remove(const std::string& path);
  std::vector<std::string> List(const std::string& path);
  // Bytes of all files below a path; a file with several names counts once.
  uint64_t BytesOnDisk(const std::string& path);

  struct Node;
  struct Disk;
  struct Process;

 private:
  MemoryFileSystem(std::shared_ptr<Disk> disk, std::shared_ptr<Process> process);

  std::shared_ptr<Disk> disk_;
  std::shared_ptr<Process> process_;
};

}  // namespace moesaic
