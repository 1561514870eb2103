#include "scheduler/service/checkpoint_keeper.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "base/log.h"
#include "proto/job_spec.h"
#include "scheduler/state/cluster_state.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

constexpr int kJobNotFound = 3;
constexpr int kDiscardTries = 100;
// Of a verification that takes long, in the log.
constexpr absl::Duration kProgressEvery = absl::Seconds(10);

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kDataLoss:
      return kExitCheckpointInvalid;
    case absl::StatusCode::kNotFound:
      return kJobNotFound;
    case absl::StatusCode::kInvalidArgument:
      return kExitUsage;
    default:
      return kExitJobFailed;
  }
}

// Whether a job may go on from a checkpoint, and what changes on the way.
absl::Status CompareSpecs(const Manifest& manifest, const JobSpec& spec, const std::string& path,
                          std::vector<std::string>* trajectory_changes) {
  if (manifest.weights_only()) {
    return absl::InvalidArgumentError(fmt::format(
        "{} holds weights only: a run can start from it (train.init_from), not resume", path));
  }
  const std::vector<std::string> identity = DescribeChanges(manifest.spec(), spec, IDENTITY);
  if (!identity.empty()) {
    return absl::FailedPreconditionError(
        fmt::format("{} is of another model: {}; give another checkpoint.dir, or start anew with "
                    "--resume never",
                    path, fmt::join(identity, "; ")));
  }
  trajectory_changes->assign(manifest.trajectory_changes().begin(),
                             manifest.trajectory_changes().end());
  for (const std::string& change : DescribeChanges(manifest.spec(), spec, TRAJECTORY)) {
    trajectory_changes->push_back(fmt::format("step {}: {}", manifest.state().step(), change));
  }
  return absl::OkStatus();
}

}  // namespace

RestoreChosen CheckpointKeeper::Choose(const ChooseRestore& action) {
  RestoreChosen chosen;
  chosen.job = action.job;
  chosen.attempt = action.attempt;
  chosen.status =
      archive_->With(action.job, action.spec.checkpoint().dir(), [&](CheckpointRoot* root) {
        return ChooseInto(action, root, &chosen);
      });
  chosen.exit_code = ExitCodeOf(chosen.status);
  return chosen;
}

absl::StatusOr<std::optional<uint64_t>> CheckpointKeeper::ChooseNewest(
    const ChooseRestore& action, CheckpointRoot* root, const std::vector<uint64_t>& before,
    RestoreChosen* chosen) {
  VerifyOptions options;
  options.depth = action.verify_content ? VerifyDepth::kContent : VerifyDepth::kStructure;
  options.threads = ReadingThreads();
  absl::Time next = clock_->Now() + kProgressEvery;
  options.progress = [&](uint64_t done, uint64_t total) {
    if (clock_->Now() < next) return;
    next = clock_->Now() + kProgressEvery;
    LogInfo("job {}: {} of {} bytes of a checkpoint are verified", action.job, done, total);
  };
  const absl::StatusOr<std::optional<uint64_t>> newest = root->NewestVerified(options);
  if (!newest.ok()) return newest.status();
  for (const uint64_t other : before) {
    if (*newest && other <= **newest) continue;
    chosen->notes.push_back(fmt::format(
        "WARNING: the checkpoint of step {} is broken; it was moved to {}/.quarantine", other,
        root->path()));
  }
  if (*newest || before.empty()) return *newest;
  return absl::DataLossError(
      fmt::format("none of the {} checkpoints in {} verifies; they are in .quarantine there. Run "
                  "again to start anew",
                  before.size(), root->path()));
}

absl::Status CheckpointKeeper::ChooseInto(const ChooseRestore& action, CheckpointRoot* root,
                                          RestoreChosen* chosen) {
  const absl::StatusOr<std::vector<uint64_t>> before = root->Steps();
  if (!before.ok()) return before.status();

  std::optional<uint64_t> step;
  if (action.resume == "auto") {
    const absl::StatusOr<std::optional<uint64_t>> newest =
        ChooseNewest(action, root, *before, chosen);
    if (!newest.ok()) return newest.status();
    step = *newest;
  } else if (action.resume != "never") {
    step.emplace();
    if (!absl::SimpleAtoi(action.resume, &*step) ||
        !std::count(before->begin(), before->end(), *step)) {
      return absl::NotFoundError(
          fmt::format("there is no checkpoint of step {} in {}; there are: {}", action.resume,
                      root->path(), fmt::join(*before, ", ")));
    }
  }
  if (action.resume != "auto" && !before->empty() && (!step || before->back() > *step)) {
    if (const absl::Status moved = root->SetAsideAfter(step); !moved.ok()) return moved;
    chosen->notes.push_back(fmt::format(
        "{} were moved to {}/.quarantine",
        step ? fmt::format("checkpoints after step {}", *step) : "all checkpoints", root->path()));
  }
  if (!step) return absl::OkStatus();

  chosen->path = root->StepPath(*step);
  const absl::StatusOr<std::unique_ptr<Folder>> folder = root->OpenFolderAt(chosen->path);
  if (!folder.ok()) return folder.status();
  const VerifyReport report = VerifyStep(**folder, VerifyDepth::kStructure);
  if (!report.ok()) return VerifyStatus(**folder, report);
  const absl::StatusOr<Manifest> manifest = ReadManifest(**folder);
  if (!manifest.ok()) return manifest.status();
  chosen->state = manifest->state();
  return CompareSpecs(*manifest, action.spec, chosen->path, &chosen->trajectory_changes);
}

CheckpointStaged CheckpointKeeper::Stage(const StageCheckpoint& action) {
  CheckpointStaged staged{action.job, action.generation, action.step, absl::OkStatus(), ""};
  folders_[action.job] = action.spec.checkpoint().dir();
  staged.status =
      archive_->With(action.job, action.spec.checkpoint().dir(), [&](CheckpointRoot* root) {
        absl::StatusOr<std::string> staging = root->BeginStaging(action.step, action.generation);
        if (staging.ok()) staged.staging = *std::move(staging);
        return staging.status();
      });
  return staged;
}

CommitFinished CheckpointKeeper::Commit(const CommitCheckpoint& action) {
  CommitFinished finished{action.job, action.generation, action.step, absl::OkStatus(), ""};
  CommitRequest request;
  request.staging = action.staging;
  request.generation = action.generation;
  request.ranks = static_cast<uint32_t>(action.shards.size());
  request.reports = action.shards;
  request.spec = action.spec;
  request.tokenizer = action.spec.data().tokenizer();
  request.binary = binary_;
  request.layout = action.layout;
  request.created = clock_->Now();
  request.writers = action.writers;
  request.trajectory_changes = action.trajectory_changes;
  finished.status =
      archive_->With(action.job, action.spec.checkpoint().dir(), [&](CheckpointRoot* root) {
        const absl::StatusOr<CommittedStep> committed = root->Commit(request);
        if (!committed.ok()) return committed.status();
        finished.path = committed->path;
        const auto removed = root->Retain(action.spec.checkpoint().keep());
        if (!removed.ok()) {
          LogWarning("old checkpoints stay: {}", std::string(removed.status().message()));
        }
        return absl::OkStatus();
      });
  return finished;
}

void CheckpointKeeper::Discard(const DiscardStaging& action) {
  if (!folders_.contains(action.job)) return;
  rest_.push_back({action});
  DiscardRest();
}

void CheckpointKeeper::DiscardRest() {
  std::erase_if(rest_, [&](Rest& rest) {
    const absl::Status status =
        archive_->With(rest.action.job, folders_[rest.action.job],
                       [&](CheckpointRoot* root) { return root->Abort(rest.action.staging); });
    if (status.ok()) return true;
    if (++rest.tries < kDiscardTries) return false;
    LogWarning("{} stays until the next start: {}", rest.action.staging,
               std::string(status.message()));
    return true;
  });
}

}  // namespace moesaic
