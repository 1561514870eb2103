// CheckpointArchive: the checkpoint roots of all jobs of a coordinator, their catalog, and who
// wants to know of changes. Everything that changes a root goes through it, one at a time for a
// root; after each change the catalog is made to agree with the folders, and what differs is an
// event.
//
// In the background, one at a time and at low priority, it reads every byte of each new checkpoint.
// One that is not as it was written is moved to .quarantine, loudly.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "proto/checkpoint_service.pb.h"
#include "scheduler/service/checkpoint_catalog.h"
#include "trainer/checkpoint/format/commit.h"

namespace moesaic {

struct ArchiveOptions {
  std::string catalog_path;  // ":memory:" keeps none
  FileSystem* files = &FileSystem::System();
  const Clock* clock = &Clock::System();
  // Whether new checkpoints are verified in the background.
  bool verify = true;
  // What people should know of a job; called without a lock.
  std::function<void(const std::string& job, const std::string& text)> note;
};

// Thread-safe. Disk work in the caller's thread: not for threads that must not wait.
class CheckpointArchive {
 public:
  using Listener = std::function<void(const CheckpointEvent&)>;

  static absl::StatusOr<std::unique_ptr<CheckpointArchive>> Open(ArchiveOptions options);
  // Ends a verification in progress.
  ~CheckpointArchive();

  // Calls `work` with the job's root, which nobody else uses meanwhile, then brings the catalog up
  // to date. When the root was not open yet (or `dir` is another one) it is opened, and what
  // unfinished saves of a former life left there is removed.
  absl::Status With(const std::string& job, const std::string& dir,
                    const std::function<absl::Status(CheckpointRoot*)>& work);

  // By step; those in quarantine too. Of the catalog, after With has opened the root.
  absl::StatusOr<std::vector<CheckpointEntry>> List(const std::string& job, const std::string& dir);
  // `step` 0: the newest. NotFound when it is not there.
  absl::StatusOr<CheckpointEntry> Find(const std::string& job, const std::string& dir,
                                       uint64_t step);
  // FailedPrecondition when it is in use: `in_use` is the step that a live job goes on from.
  absl::Status Delete(const std::string& job, const std::string& dir, uint64_t step, bool force,
                      uint64_t in_use);
  absl::StatusOr<CheckpointEntry> Pin(const std::string& job, const std::string& dir, uint64_t step,
                                      bool pin, const std::string& note = "");
  // NotFound when it has gone meanwhile; DataLoss.
  absl::StatusOr<Manifest> ManifestOf(const std::string& dir, const CheckpointEntry& entry);
  // Reads every byte (options.depth is kContent). What is wrong, in words; a checkpoint that is
  // damaged goes to .quarantine. Unavailable when it could not be read or was cancelled.
  absl::StatusOr<std::vector<std::string>> Verify(const std::string& job, const std::string& dir,
                                                  uint64_t step, const VerifyOptions& options);

  // `listener` hears of every change from now on, in order and without a lock of this class's
  // callers; it must be quick. Returns a number for Unwatch.
  uint64_t Watch(Listener listener);
  void Unwatch(uint64_t number);
  // A save that failed.
  void GivenUp(const std::string& job, uint64_t step, const std::string& why);

 private:
  struct JobRoot {
    Mutex mutex;
    std::unique_ptr<CheckpointRoot> root ABSL_GUARDED_BY(mutex);
  };
  struct Unverified {
    std::string job;
    std::string dir;
    uint64_t step = 0;
  };

  CheckpointArchive(ArchiveOptions options, std::unique_ptr<CheckpointCatalog> catalog);

  std::shared_ptr<JobRoot> RootOf(const std::string& job) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status OpenRoot(JobRoot* held, const std::string& dir)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(held->mutex);
  // Makes the catalog agree with the root; returns what was new.
  absl::StatusOr<std::vector<CheckpointEvent>> Reconcile(const std::string& job,
                                                         const CheckpointRoot& root)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::vector<CheckpointEntry>> Scan(
      const std::string& job, const CheckpointRoot& root,
      const std::vector<CheckpointEntry>& known) const;
  static CheckpointEntry Describe(const std::string& job, uint64_t step, const CheckpointRoot& root,
                                  const std::string& path);
  // Below the root; it stays the same folder when it is moved.
  absl::StatusOr<std::unique_ptr<Folder>> OpenFolderOf(const std::string& dir,
                                                       const CheckpointEntry& entry);
  void Tell(const std::vector<CheckpointEvent>& events) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status MarkVerified(const CheckpointEntry& entry) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status SetAside(const std::string& job, const std::string& dir,
                        const CheckpointEntry& entry, const std::string& why);
  void RunVerification();

  const ArchiveOptions options_;
  Mutex mutex_;
  CondVar changed_;
  const std::unique_ptr<CheckpointCatalog> catalog_ ABSL_PT_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<JobRoot>> roots_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, std::shared_ptr<Listener>> listeners_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_listener_ ABSL_GUARDED_BY(mutex_) = 1;
  std::deque<Unverified> unverified_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> stopping_{false};
  std::thread verification_;
};

}  // namespace moesaic
