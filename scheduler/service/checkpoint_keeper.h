// CheckpointKeeper: does what the cluster state asks to be done on the checkpoint folders of its
// jobs, and says what came of it. Disk work: never under the coordinator's lock.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "scheduler/service/checkpoint_archive.h"
#include "scheduler/state/events.h"
#include "trainer/checkpoint/format/commit.h"

namespace moesaic {

// Thread-compatible: one background thread owns it.
class CheckpointKeeper {
 public:
  // `binary`: version and build, for manifests. The others must outlive the keeper.
  CheckpointKeeper(CheckpointArchive* archive, const Clock* clock, std::string binary)
      : archive_(archive), clock_(clock), binary_(std::move(binary)) {}

  // resume "auto": the newest step that verifies, by its structure or (verify_content) every byte,
  // on several threads; broken ones are set aside, with a note. When there are steps and none
  // verifies, DataLoss: a silent start from nothing would look like progress lost. "never": a new
  // start. A number: that step. Steps after the chosen one are set aside, never deleted.
  RestoreChosen Choose(const ChooseRestore& action);
  CheckpointStaged Stage(const StageCheckpoint& action);
  // Proof of coverage, manifest, rename, then retention.
  CommitFinished Commit(const CommitCheckpoint& action);
  // An agent that has not heard of it yet may still write there, and then some of it stays for now:
  // DiscardRest tries again what stayed.
  void Discard(const DiscardStaging& action);
  bool has_rest() const { return !rest_.empty(); }
  void DiscardRest();

 private:
  struct Rest {
    DiscardStaging action;
    int tries = 0;
  };

  absl::Status ChooseInto(const ChooseRestore& action, CheckpointRoot* root,
                          RestoreChosen* chosen);
  absl::StatusOr<std::optional<uint64_t>> ChooseNewest(const ChooseRestore& action,
                                                       CheckpointRoot* root,
                                                       const std::vector<uint64_t>& before,
                                                       RestoreChosen* chosen);

  CheckpointArchive* const archive_;
  const Clock* const clock_;
  const std::string binary_;
  std::map<std::string, std::string> folders_;  // checkpoint.dir of each job that has staged
  std::vector<Rest> rest_;
};

}  // namespace moesaic
