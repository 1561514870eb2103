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

namespace moesaic {
namespace {

constexpr int kJobNotFound = 3;

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kDataLoss:
      return kJobBadCheckpoint;
    case absl::StatusCode::kNotFound:
      return kJobNotFound;
    case absl::StatusCode::kInvalidArgument:
      return kJobBadConfig;
    default:
      return kJobFailed;
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

absl::StatusOr<CheckpointRoot*> CheckpointKeeper::Root(const std::string& job,
                                                       const std::string& dir) {
  std::unique_ptr<CheckpointRoot>& root = roots_[job];
  const std::string path = std::filesystem::absolute(dir).lexically_normal().string();
  if (root != nullptr && root->path() == path) return root.get();
  absl::StatusOr<std::unique_ptr<CheckpointRoot>> opened = CheckpointRoot::Open(files_, path);
  if (!opened.ok()) return opened.status();
  if (const absl::Status swept = (*opened)->Sweep(0); !swept.ok()) return swept;
  root = *std::move(opened);
  return root.get();
}

RestoreChosen CheckpointKeeper::Choose(const ChooseRestore& action) {
  RestoreChosen chosen;
  chosen.job = action.job;
  chosen.attempt = action.attempt;
  chosen.status = ChooseInto(action, &chosen);
  chosen.exit_code = ExitCodeOf(chosen.status);
  return chosen;
}

absl::Status CheckpointKeeper::ChooseInto(const ChooseRestore& action, RestoreChosen* chosen) {
  const absl::StatusOr<CheckpointRoot*> opened = Root(action.job, action.spec.checkpoint().dir());
  if (!opened.ok()) return opened.status();
  CheckpointRoot* root = *opened;
  const absl::StatusOr<std::vector<uint64_t>> before = root->Steps();
  if (!before.ok()) return before.status();

  uint64_t step = 0;
  if (action.resume == "auto") {
    const absl::StatusOr<std::optional<uint64_t>> newest =
        root->NewestVerified(VerifyDepth::kStructure);
    if (!newest.ok()) return newest.status();
    step = newest->value_or(0);
    for (const uint64_t other : *before) {
      if (other > step) {
        chosen->notes.push_back(fmt::format(
            "WARNING: the checkpoint of step {} is broken; it was moved to {}/.quarantine", other,
            root->path()));
      }
    }
    if (step == 0 && !before->empty()) {
      return absl::DataLossError(fmt::format(
          "none of the {} checkpoints in {} verifies; they are in .quarantine there. Run again to "
          "start anew",
          before->size(), root->path()));
    }
  } else if (action.resume != "never") {
    if (!absl::SimpleAtoi(action.resume, &step) ||
        !std::count(before->begin(), before->end(), step)) {
      return absl::NotFoundError(
          fmt::format("there is no checkpoint of step {} in {}; there are: {}", action.resume,
                      root->path(), fmt::join(*before, ", ")));
    }
  }
  if (action.resume != "auto" && !before->empty() && before->back() > step) {
    if (const absl::Status moved = root->SetAsideAfter(step); !moved.ok()) return moved;
    chosen->notes.push_back(
        fmt::format("checkpoints after step {} were moved to {}/.quarantine", step, root->path()));
  }
  if (step == 0) return absl::OkStatus();

  chosen->path = root->StepPath(step);
  const absl::StatusOr<StepFolder> folder = OpenCheckpoint(files_, chosen->path);
  if (!folder.ok()) return folder.status();
  const VerifyReport report = VerifyStep(*folder->folder, VerifyDepth::kStructure);
  if (!report.ok()) return VerifyStatus(*folder->folder, report);
  const absl::StatusOr<Manifest> manifest = ReadManifest(*folder->folder);
  if (!manifest.ok()) return manifest.status();
  chosen->state = manifest->state();
  return CompareSpecs(*manifest, action.spec, chosen->path, &chosen->trajectory_changes);
}

CheckpointStaged CheckpointKeeper::Stage(const StageCheckpoint& action) {
  CheckpointStaged staged{action.job, action.generation, action.step, absl::OkStatus(), ""};
  const absl::StatusOr<CheckpointRoot*> root = Root(action.job, action.spec.checkpoint().dir());
  if (!root.ok()) {
    staged.status = root.status();
    return staged;
  }
  absl::StatusOr<std::string> staging = (*root)->BeginStaging(action.step, action.generation);
  if (staging.ok()) {
    staged.staging = *std::move(staging);
  } else {
    staged.status = staging.status();
  }
  return staged;
}

CommitFinished CheckpointKeeper::Commit(const CommitCheckpoint& action) {
  CommitFinished finished{action.job, action.generation, action.step, absl::OkStatus(), ""};
  const absl::StatusOr<CheckpointRoot*> root = Root(action.job, action.spec.checkpoint().dir());
  if (!root.ok()) {
    finished.status = root.status();
    return finished;
  }
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
  const absl::StatusOr<CommittedStep> committed = (*root)->Commit(request);
  if (!committed.ok()) {
    finished.status = committed.status();
    return finished;
  }
  finished.path = committed->path;
  const auto removed = (*root)->Retain(action.spec.checkpoint().keep());
  if (!removed.ok())
    LogWarning("old checkpoints stay: {}", std::string(removed.status().message()));
  return finished;
}

void CheckpointKeeper::Discard(const DiscardStaging& action) {
  const auto root = roots_.find(action.job);
  if (root == roots_.end() || root->second == nullptr) return;
  const absl::Status status = root->second->Abort(action.staging);
  if (!status.ok()) {
    LogWarning("{} stays until the next start: {}", action.staging, std::string(status.message()));
  }
}

}  // namespace moesaic
