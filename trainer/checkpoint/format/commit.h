// CheckpointRoot: the folder that holds the step folders of a job, as the coordinator keeps it.
//
//   BeginStaging -> agents write shard files (shard_files.h) -> Commit, or Abort
//
// The commit point is the durable rename of the staging folder to its step folder: before it
// nothing of the step can be seen, after it the step is complete. Staging names are never used
// twice, so a late writer of an older attempt cannot touch a newer one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "proto/agent.pb.h"
#include "proto/checkpoint.pb.h"
#include "proto/job.pb.h"
#include "trainer/checkpoint/format/file_system.h"
#include "trainer/checkpoint/format/pins.h"
#include "trainer/checkpoint/format/retention.h"
#include "trainer/checkpoint/format/set_aside.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {

struct CommitRequest {
  std::string staging;  // as BeginStaging returned it
  uint64_t generation = 0;  // the current one: a staging folder of another is refused
  uint32_t ranks = 0;
  std::span<const ShardsPersisted> reports;  // one of each rank, in any order
  JobSpec spec;  // resolved
  std::string tokenizer;  // path of the file to copy; empty: none
  std::string binary;
  std::string layout;
  absl::Time created;
  std::vector<std::string> writers;
  std::vector<std::string> trajectory_changes;
  bool weights_only = false;
};

struct CommittedStep {
  uint64_t step = 0;
  std::string path;
  uint64_t bytes = 0;
  uint64_t reused_bytes = 0;  // of them, in files that were taken over from an earlier step
  // The same step of the same trajectory was there already and stays; the new one is dropped.
  bool was_there = false;
};

// Thread-compatible. One process at a time may own a root.
class CheckpointRoot {
 public:
  // Makes the folder where it is missing. Agents open the staging paths below `path`, so it must be
  // absolute when they run in other processes. `files` and `clock` must outlive the root.
  static absl::StatusOr<std::unique_ptr<CheckpointRoot>> Open(
      FileSystem* files, const std::string& path, const Clock* clock = &Clock::System());

  const std::string& path() const { return root_->path(); }
  std::string StepPath(uint64_t step) const;
  // Committed steps, ascending.
  absl::StatusOr<std::vector<uint64_t>> Steps() const;

  // A folder that this root gave out the path of: a step, or one in quarantine. No symbolic link is
  // followed below the root.
  absl::StatusOr<std::unique_ptr<Folder>> OpenFolderAt(const std::string& path) const {
    return OpenBelow(*root_, path);
  }

  // Makes "<path>/.staging/step-<step>.g<generation>.<unique>" and returns it.
  absl::StatusOr<std::string> BeginStaging(uint64_t step, uint64_t generation);

  // FailedPrecondition: reports that are missing, failed, stale or disagree; objects that are
  // missing or not tiled exactly once (coverage.h). DataLoss: files that are not as reported.
  // AlreadyExists: the step is there from another trajectory (SetAsideAfter was not called at the
  // resume). Whatever the error, nothing is committed and the caller should Abort; Unavailable
  // alone may mean that the step is there but not known to be durable.
  absl::StatusOr<CommittedStep> Commit(const CommitRequest& request);

  // Removes a staging folder. Idempotent.
  absl::Status Abort(const std::string& staging);

  // Removes the steps that `keep` does not want and that are not pinned (retention.h). Each is
  // moved to .trash before anything in it is unlinked. The newest step that verifies always stays.
  // Returns the steps that went. Unavailable, and nothing goes, when a step that must be looked at
  // cannot be read.
  absl::StatusOr<std::vector<uint64_t>> Retain(const KeepSpec& keep);

  // Removes one step. FailedPrecondition when it is pinned or the only one, unless `force`;
  // NotFound when it is not there.
  absl::Status Remove(uint64_t step, bool force);

  // pins.h.
  absl::Status Pin(uint64_t step, absl::string_view note) {
    return PinStep(root_.get(), step, note);
  }
  absl::Status Unpin(uint64_t step) { return UnpinStep(root_.get(), step); }
  absl::StatusOr<std::map<uint64_t, std::string>> Pins() const { return ListPins(*root_); }

  // At start: removes .trash and the staging folders of all generations but `live_generation`
  // (0: of all), and pins of steps that are not there.
  absl::Status Sweep(uint64_t live_generation);

  // The newest step that verifies; steps that do not are moved to .quarantine, with an error in the
  // log. Nothing when there is none. Unavailable when a step cannot be read: that is no reason to
  // fall back to an older one.
  absl::StatusOr<std::optional<uint64_t>> NewestVerified(const VerifyOptions& options);
  absl::StatusOr<std::optional<uint64_t>> NewestVerified(VerifyDepth depth) {
    return NewestVerified(VerifyOptions{depth, 1, {}, nullptr});
  }

  // Moves a step to .quarantine, with the reason and an error in the log; nothing is deleted.
  absl::Status Quarantine(uint64_t step, absl::string_view reason);
  absl::StatusOr<std::vector<QuarantinedStep>> Quarantined() const {
    return ListQuarantined(*root_);
  }
  // Quarantines every step after `step` (nothing: every step): for a resume from an older step, or
  // a new start, whose trajectory must not meet the abandoned one.
  absl::Status SetAsideAfter(std::optional<uint64_t> step);

 private:
  CheckpointRoot(FileSystem* files, std::unique_ptr<Folder> root, const Clock* clock);

  absl::Status CopyTokenizer(const std::string& path, Folder* staging, Manifest* manifest);
  absl::StatusOr<CommittedStep> Publish(const std::string& name, const Manifest& manifest);
  // Whether the step is there, complete, and of the same trajectory. A broken one is quarantined.
  absl::StatusOr<bool> IsThere(const Manifest& manifest);
  // Of every step, for ChooseKept. Verifies steps from the newest on until one does.
  absl::StatusOr<std::vector<StepFacts>> GatherFacts(const KeepSpec& keep) const;

  FileSystem* files_;
  std::unique_ptr<Folder> root_;
  const Clock* clock_;
};

}  // namespace moesaic
