#include "trainer/loop/worker.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/job_spec.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/checkpoint/snapshot.h"
#include "trainer/loop/layout.h"
#include "trainer/loop/snapshot_schedule.h"
#include "trainer/loop/stored_state.h"
#include "trainer/loop/trainer.h"
#include "trainer/metrics/metrics_file.h"
#include "trainer/metrics/tensorboard_file.h"

namespace moesaic {
namespace {

// How long a snapshot waits for the one before it, and how often it looks.
constexpr absl::Duration kBufferDeadline = absl::Seconds(60);
constexpr absl::Duration kBufferPoll = absl::Milliseconds(2);
// How often the coordinator hears of progress within a step.
constexpr absl::Duration kReportInterval = absl::Seconds(1);

template <typename Hash>
std::string Bytes(const Hash& hash) {
  return {hash.begin(), hash.end()};
}

WorkerResult Ended(WorkerEnd end, absl::Status status) { return {end, std::move(status)}; }

// What the coordinator's answers mean to a worker.
WorkerResult RefusedByCoordinator(absl::Status status) {
  if (absl::IsFailedPrecondition(status)) return Ended(WorkerEnd::kStale, std::move(status));
  if (absl::IsAborted(status)) return Ended(WorkerEnd::kMismatch, std::move(status));
  return Ended(WorkerEnd::kFailed, std::move(status));
}

WorkerResult FailedInput(absl::Status status) {
  if (absl::IsDataLoss(status)) return Ended(WorkerEnd::kCorrupt, std::move(status));
  if (absl::IsFailedPrecondition(status)) return Ended(WorkerEnd::kMismatch, std::move(status));
  if (absl::IsNotFound(status) || absl::IsInvalidArgument(status)) {
    return Ended(WorkerEnd::kBadInput, std::move(status));
  }
  return Ended(WorkerEnd::kFailed, std::move(status));
}

// One generation of one rank, once it has its rank table.
class Generation {
 public:
  Generation(const WorkerInputs& inputs, RankTable table)
      : inputs_(inputs), table_(std::move(table)), rank_(inputs.world->rank()) {}

  WorkerResult Run() {
    if (auto failed = SetUp()) return *std::move(failed);
    if (auto failed = AgreeToStart()) return *std::move(failed);
    return Train();
  }

 private:
  std::optional<WorkerResult> SetUp();
  RestoreFrom WhereToRestoreFrom() const;
  std::optional<WorkerResult> OpenMetrics();
  std::optional<WorkerResult> FillParameters();
  std::optional<WorkerResult> AgreeToStart();
  WorkerResult Train();
  std::optional<WorkerResult> FinishStep(StepOutcome outcome);
  void WriteMetrics(const StepRecord& record);
  bool WaitForFreeBuffer();
  absl::StatusOr<SnapshotReport> CopyState();
  SnapshotReport TakeSnapshot();
  void Pass(const LoopPlace& place);
  void Report(const char* phase, const StepOutcome* outcome = nullptr);
  const JobSpec& spec() const { return table_.spec(); }
  int threads() const { return static_cast<int>(table_.threads()); }

  bool NoBuffer(const Control& control) {
    snapshots_->Settle(control);
    return snapshots_->full();
  }

  ControlWord Wish() {
    const Control control = inputs_.client->LatestControl();
    return {.stop = control.stop(),
            .snapshot = control.snapshot_now(),
            .hold_snapshots = NoBuffer(control)};
  }

  bool ValidationIsDue(uint64_t step) const {
    const uint64_t every = spec().train().validate_every_steps();
    return spec().data().validation_size() > 0 &&
           (step == spec().train().steps() || (every > 0 && step % every == 0));
  }

  const WorkerInputs& inputs_;
  const RankTable table_;
  const int rank_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<SnapshotTaker> snapshots_;
  std::unique_ptr<MetricsFile> metrics_;  // rank 0, as the next
  std::unique_ptr<TensorBoardFile> tensorboard_;
  absl::Time reported_ = absl::InfinitePast();
};

std::optional<WorkerResult> Generation::SetUp() {
  if (inputs_.watchdog != nullptr) {
    inputs_.watchdog->Start(absl::Seconds(spec().health().progress_timeout()));
  }
  if (absl::Status started = inputs_.client->StartProgress(); !started.ok()) {
    return RefusedByCoordinator(std::move(started));
  }
  Report("open");
  at::set_num_threads(threads());
  auto layout = LayoutOf(table_);
  if (!layout.ok()) return Ended(WorkerEnd::kFailed, layout.status());
  auto experts = StoredExperts(WhereToRestoreFrom(), spec());
  if (absl::IsDataLoss(experts.status())) return Ended(WorkerEnd::kBadCheckpoint, experts.status());
  if (!experts.ok()) return FailedInput(experts.status());
  auto trainer = Trainer::Create({.spec = spec(),
                                  .mesh = layout->mesh,
                                  .placement = layout->placement,
                                  .rank = rank_,
                                  .world = inputs_.world,
                                  .progress = [this](const LoopPlace& place) { Pass(place); },
                                  .experts = *experts});
  if (!trainer.ok()) return FailedInput(trainer.status());
  trainer_ = *std::move(trainer);
  snapshots_ = std::make_unique<SnapshotTaker>(
      inputs_.identity, static_cast<uint32_t>(table_.ranks_size()),
      table_.ranks(rank_).arena_path());
  if (auto failed = FillParameters()) return failed;
  *trainer_->state().mutable_placement() =
      StorePlacement(spec(), layout->mesh, layout->placement);
  return rank_ == 0 ? OpenMetrics() : std::nullopt;
}

std::optional<WorkerResult> Generation::OpenMetrics() {
  auto metrics = MetricsFile::Open(spec().run().dir());
  if (!metrics.ok()) return Ended(WorkerEnd::kBadInput, metrics.status());
  metrics_ = *std::move(metrics);
  if (!spec().run().tensorboard()) return std::nullopt;
  auto tensorboard = TensorBoardFile::Open({.run_dir = spec().run().dir(),
                                            .generation = table_.generation(),
                                            .first_step = trainer_->state().step() + 1,
                                            .clock = &Clock::System()});
  if (!tensorboard.ok()) return Ended(WorkerEnd::kBadInput, tensorboard.status());
  tensorboard_ = *std::move(tensorboard);
  return std::nullopt;
}

// Metrics that cannot be written are missed by people, not by the training.
void Generation::WriteMetrics(const StepRecord& record) {
  if (rank_ != 0) return;
  absl::Status status = metrics_->Append(record);
  if (tensorboard_ != nullptr) status.Update(tensorboard_->Append(record));
  if (!status.ok()) LogWarning("{}", std::string(status.message()));
}

RestoreFrom Generation::WhereToRestoreFrom() const {
  RestoreFrom from = {.sources = table_.restore(),
                      .node = table_.ranks(rank_).node(),
                      .asking = inputs_.identity,
                      .open_peer = inputs_.open_peer};
  from.sources.set_path(table_.restore_path());
  return from;
}

std::optional<WorkerResult> Generation::FillParameters() {
  if (inputs_.watchdog != nullptr) inputs_.watchdog->SetPlace({.phase = "restore"});
  Report("restore");
  const RestoreInto into = {
      .catalog = &trainer_->catalog(), .store = &trainer_->store(), .threads = threads()};
  absl::Status status;
  if (const RestoreFrom from = WhereToRestoreFrom();
      !from.sources.path().empty() || !from.sources.snapshots().empty()) {
    const absl::Time began = absl::Now();
    auto restored = RestoreTraining(from, spec(), into);
    status = restored.status();
    if (absl::IsUnavailable(status) && !from.sources.snapshots().empty()) {
      return Ended(WorkerEnd::kSnapshotLost, std::move(status));
    }
    if (restored.ok()) {
      trainer_->state() = std::move(restored->state);
      status = trainer_->Settle();
      LogInfo("restored step {} in {:.3f} s: {}", trainer_->state().step(),
              absl::ToDoubleSeconds(absl::Now() - began), restored->summary);
    }
  } else if (spec().train().has_init_from()) {
    status = RestoreWeights(spec().train().init_from(), into);
  } else {
    trainer_->InitialiseParameters();
    return std::nullopt;
  }
  if (absl::IsDataLoss(status)) return Ended(WorkerEnd::kBadCheckpoint, std::move(status));
  if (!status.ok()) return FailedInput(status);
  trainer_->PublishWeights();
  return std::nullopt;
}

std::optional<WorkerResult> Generation::AgreeToStart() {
  const JobHashes hashes = HashJob(spec());
  ReadyRequest request;
  request.set_layout_hash(Bytes(LayoutHash(table_)));
  request.set_config_hash(Bytes(hashes.identity) + Bytes(hashes.trajectory));
  request.set_binary_hash(inputs_.binary);
  request.set_restored_step(trainer_->state().step());
  absl::Status status =
      inputs_.client->Ready(request, absl::Seconds(spec().health().start_timeout()));
  if (!status.ok()) return RefusedByCoordinator(std::move(status));
  return std::nullopt;
}

WorkerResult Generation::Train() {
  Report("start");
  while (trainer_->state().step() < spec().train().steps()) {
    auto outcome = trainer_->Step(Wish());
    if (!outcome.ok()) return FailedInput(outcome.status());
    const bool stop = outcome->control.stop;
    if (auto failed = FinishStep(*std::move(outcome))) return *std::move(failed);
    if (inputs_.client->LatestControl().abort()) {
      return Ended(WorkerEnd::kStale, absl::FailedPreconditionError(
                                          "the coordinator has ended this generation"));
    }
    if (stop && trainer_->state().step() < spec().train().steps()) {
      Report("stopped");
      return Ended(WorkerEnd::kStopped, inputs_.client->FinishProgress());
    }
  }
  Report("done");
  return Ended(WorkerEnd::kTrained, inputs_.client->FinishProgress());
}

std::optional<WorkerResult> Generation::FinishStep(StepOutcome outcome) {
  const uint64_t step = trainer_->state().step();
  StepRecord record = {.recipe = std::move(outcome.recipe),
                       .routing = std::move(outcome.routing),
                       .loads = LoadsAreDue(step, spec().train().steps())};
  if (ValidationIsDue(step)) {
    Report("validate");
    auto validation = trainer_->Validate({.samples = spec().train().validate_samples()});
    if (!validation.ok()) return FailedInput(validation.status());
    outcome.metrics.set_validation_loss(validation->loss);
    trainer_->state().set_validation_loss(validation->loss);
    record.validation = std::move(validation->routing);
    record.loads = true;
  }
  outcome.metrics.set_generation(table_.generation());
  const SnapshotSchedule schedule = {
      .every_steps = spec().checkpoint().every_steps(),
      .memory_every_steps = spec().checkpoint().memory_every_steps(),
      .last_step = spec().train().steps()};
  std::optional<SnapshotReport> snapshot;
  if (schedule.Due(step, outcome.control)) {
    const absl::Time began = absl::Now();
    snapshot = TakeSnapshot();
    outcome.metrics.set_snapshot_seconds(absl::ToDoubleSeconds(absl::Now() - began));
  }
  record.step = outcome.metrics;
  WriteMetrics(record);
  Report("step", &outcome);
  if (snapshot) inputs_.client->ReportSnapshot(*snapshot);
  return std::nullopt;
}

// Rank 0 may have seen the last commit before this rank has; the buffer is free in a moment then.
// A snapshot on request, and the last, wait for the one before them.
bool Generation::WaitForFreeBuffer() {
  const absl::Time deadline = absl::Now() + kBufferDeadline;
  while (NoBuffer(inputs_.client->LatestControl())) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(kBufferPoll);
  }
  return true;
}

absl::StatusOr<SnapshotReport> Generation::CopyState() {
  if (!WaitForFreeBuffer()) {
    return absl::DeadlineExceededError(
        absl::StrCat("the snapshot before it was not persisted within ",
                     absl::FormatDuration(kBufferDeadline)));
  }
  auto taken = snapshots_->Take(trainer_->state(), ObjectsToWrite(*trainer_, rank_), threads());
  if (!taken.ok()) return taken.status();
  return **taken;
}

// A snapshot that fails is given up; training goes on.
SnapshotReport Generation::TakeSnapshot() {
  auto copied = CopyState();
  if (copied.ok()) return *std::move(copied);
  SnapshotReport report;
  report.set_step(trainer_->state().step());
  report.set_error(std::string(copied.status().message()));
  LogWarning("snapshot of step {} given up: {}", report.step(), report.error());
  return report;
}

// The coordinator hears of a long step or validation while it lasts.
void Generation::Pass(const LoopPlace& place) {
  if (inputs_.watchdog != nullptr) inputs_.watchdog->SetPlace(place);
  const absl::Time now = absl::Now();
  if (now < reported_ + kReportInterval) return;
  StepReport report;
  report.set_step(trainer_->state().step());
  report.set_phase(place.phase);
  report.set_micro_batch(static_cast<uint64_t>(std::max<int64_t>(place.micro_batch, 0)));
  inputs_.client->Report(report);
  reported_ = now;
}

void Generation::Report(const char* phase, const StepOutcome* outcome) {
  StepReport report;
  report.set_step(trainer_ == nullptr ? 0 : trainer_->state().step());
  report.set_phase(phase);
  if (outcome != nullptr) {
    report.set_phase_seconds(outcome->times.forward_backward);
    if (rank_ == 0) *report.mutable_metrics() = outcome->metrics;
  }
  inputs_.client->Report(report);
  reported_ = absl::Now();
}

WorkerResult RunGeneration(const WorkerInputs& inputs) {
  auto table = inputs.client->GetRankTable();
  if (!table.ok()) return RefusedByCoordinator(table.status());
  return Generation(inputs, *std::move(table)).Run();
}

}  // namespace

WorkerResult RunWorker(const WorkerInputs& inputs) {
  try {
    return RunGeneration(inputs);
  } catch (const std::exception& error) {
    return Ended(WorkerEnd::kFailed, absl::InternalError(absl::StrCat(
                                         "[worker] ", error.what())));
  }
}

}  // namespace moesaic
