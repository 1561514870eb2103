#include "trainer/checkpoint/convert/first_step.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/box.h"

namespace moesaic {
namespace {

// Counts what the sources give, over all of them.
void ReportProgress(const ByteProgress& progress, std::vector<ShardSource>* sources) {
  if (!progress) return;
  int64_t total = 0;
  for (const ShardSource& source : *sources) {
    total += static_cast<int64_t>(CheckedBytes(source.element, source.shape).value_or(0));
  }
  const auto done = std::make_shared<int64_t>(0);
  for (ShardSource& source : *sources) {
    source.produce = [=, produce = std::move(source.produce)](const ByteSink& sink) {
      return produce([&](std::span<const std::byte> piece) {
        *done += static_cast<int64_t>(piece.size());
        progress(*done, total);
        return sink(piece);
      });
    };
  }
}

absl::StatusOr<CommittedStep> Write(FileSystem* files, const FirstStep& step,
                                    const std::string& staging, CheckpointRoot* root) {
  absl::StatusOr<std::unique_ptr<Folder>> folder = files->OpenFolder(staging);
  if (!folder.ok()) return folder.status();
  absl::StatusOr<WrittenShards> written =
      WriteShardFiles(step.sources, {.rank = 0, .step = 0}, folder->get());
  if (!written.ok()) return written.status();
  ShardsPersisted report;
  report.set_job(step.spec.name());
  *report.mutable_state() = step.state;
  report.mutable_files()->Assign(written->files.begin(), written->files.end());
  report.mutable_objects()->Assign(written->objects.begin(), written->objects.end());
  CommitRequest request;
  request.staging = staging;
  request.ranks = 1;
  request.reports = {&report, 1};
  request.spec = step.spec;
  request.tokenizer = step.tokenizer;
  request.binary = step.binary;
  request.layout = step.origin;
  request.created = step.created;
  request.weights_only = step.weights_only;
  return root->Commit(request);
}

}  // namespace

absl::StatusOr<CommittedStep> CommitFirstStep(FileSystem* files, FirstStep step) {
  ReportProgress(step.progress, &step.sources);
  absl::StatusOr<std::unique_ptr<CheckpointRoot>> root = CheckpointRoot::Open(files, step.to);
  if (!root.ok()) return root.status();
  absl::StatusOr<std::vector<uint64_t>> steps = (*root)->Steps();
  if (!steps.ok()) return steps.status();
  if (!steps->empty()) {
    return absl::AlreadyExistsError(
        absl::StrCat(step.to, " has checkpoints already; choose another folder"));
  }
  absl::StatusOr<std::string> staging = (*root)->BeginStaging(0, 0);
  if (!staging.ok()) return staging.status();
  absl::StatusOr<CommittedStep> committed = Write(files, step, *staging, root->get());
  if (!committed.ok()) {
    // What cannot be removed is swept by the next run in this folder; the cause matters more.
    (*root)->Abort(*staging).IgnoreError();
  }
  return committed;
}

}  // namespace moesaic
