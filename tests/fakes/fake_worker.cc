// A worker without a model, for the tests of the scheduler and the agent. It trains nothing, but
// does all else that a worker does: rank table, ready, progress, control word, snapshots, exit
// codes.
//
// It misbehaves as <run.dir>/faults says: lines "GENERATION RANK STEP FAULT", where FAULT is kill,
// exit0, exit:<code>, hang or late (never ready; STEP does not matter).
#include <fmt/format.h>

#include <mpi.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "scheduler/client/coordinator_client.h"
#include "scheduler/client/random_token.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/snapshot_arena.h"

namespace moesaic {
namespace {

constexpr absl::Duration kStepTime = absl::Milliseconds(20);

class FakeWorker {
 public:
  FakeWorker(CoordinatorAddress address, int rank)
      : rank_(rank), address_(address), client_(ConnectToCoordinator(std::move(address))) {}

  int Run() {
    absl::StatusOr<RankTable> table = client_->GetRankTable();
    if (!table.ok()) return Fail(table.status(), 87);
    table_ = *std::move(table);
    if (!client_->StartProgress().ok()) return 1;
    Report("restore");
    if (const int code = Restore(); code != 0) return code;
    Misbehave("late");
    ReadyRequest ready;
    ready.set_binary_hash("fake");
    ready.set_restored_step(step_);
    if (const absl::Status status = client_->Ready(ready, absl::Minutes(1)); !status.ok()) {
      return Fail(status, absl::IsAborted(status) ? 88 : 87);
    }
    return Train();
  }

 private:
  static int Fail(const absl::Status& status, int code) {
    std::cerr << status << '\n';
    return code;
  }

  int Restore() {
    if (table_.restore_path().empty()) {
      step_ = table_.restore().step();  // from memory, or a new start
      return 0;
    }
    const auto folder = OpenCheckpoint(&FileSystem::System(), table_.restore_path());
    if (!folder.ok()) return Fail(folder.status(), 89);
    const auto manifest = ReadManifest(*folder->folder);
    if (!manifest.ok()) return Fail(manifest.status(), 89);
    step_ = manifest->state().step();
    return 0;
  }

  int Train() {
    const uint64_t steps = table_.spec().train().steps();
    const uint64_t every = table_.spec().checkpoint().every_steps();
    bool stop = false;
    while (step_ < steps && !stop) {
      absl::SleepFor(kStepTime);
      int word[2] = {client_->LatestControl().stop(), client_->LatestControl().abort()};
      MPI_Bcast(word, 2, MPI_INT, 0, MPI_COMM_WORLD);
      if (word[1] != 0) return 87;
      stop = word[0] != 0;
      ++step_;
      Misbehave("");
      ReportStep();
      if (stop || step_ == steps || (every > 0 && step_ % every == 0)) Snapshot();
    }
    Report("done");
    client_->FinishProgress().IgnoreError();
    return step_ == steps ? 0 : 75;
  }

  void Report(const char* phase) {
    StepReport report;
    report.set_step(step_);
    report.set_phase(phase);
    client_->Report(report);
  }

  void ReportStep() {
    StepReport report;
    report.set_step(step_);
    report.set_phase("step");
    if (rank_ == 0) {
      StepMetrics* metrics = report.mutable_metrics();
      metrics->set_step(step_);
      metrics->set_generation(table_.generation());
      metrics->set_loss(10.0 / static_cast<double>(step_));
      metrics->set_tokens(128);
      metrics->set_seconds(absl::ToDoubleSeconds(kStepTime));
      metrics->set_tokens_per_second(128 / metrics->seconds());
      if (step_ == table_.spec().train().steps()) metrics->set_validation_loss(2.5);
    }
    client_->Report(report);
  }

  void Snapshot() {
    const uint32_t buffer = snapshots_++ % 2;
    while (buffer_step_[buffer] > client_->LatestControl().committed_step() &&
           buffer_step_[buffer] > client_->LatestControl().aborted_snapshot_step()) {
      absl::SleepFor(absl::Milliseconds(5));
    }
    buffer_step_[buffer] = step_;
    SnapshotReport report;
    report.set_step(step_);
    report.set_buffer(buffer);
    if (const absl::Status status = WriteArena(buffer); !status.ok()) {
      report.set_error(std::string(status.message()));
    }
    client_->ReportSnapshot(report);
  }

  // Rank 0 has all objects; the others have none.
  absl::Status WriteArena(uint32_t buffer) {
    SnapshotIndex index;
    index.set_job(table_.job());
    index.set_generation(table_.generation());
    index.set_rank(rank_);
    index.mutable_state()->set_step(step_);
    index.mutable_state()->set_tokens(step_ * 128);
    index.mutable_state()->set_loss(10.0 / static_cast<double>(step_));
    const auto catalog = ParameterCatalog::Build(table_.spec());
    if (!catalog.ok()) return catalog.status();
    if (rank_ == 0) {
      for (const ParameterSpec& parameter : catalog->parameters()) {
        for (const ObjectKind kind : {MASTER, ADAM_M, ADAM_V}) {
          if (kind != MASTER && table_.spec().train().optimizer().has_sgd()) continue;
          AddObject(parameter, kind, &index);
        }
      }
    }
    const std::string path = table_.ranks(rank_).arena_path() + "." + std::to_string(buffer);
    auto writer = SnapshotWriter::Create(path, std::move(index));
    if (!writer.ok()) return writer.status();
    for (int i = 0; i < (*writer)->index().objects_size(); ++i) {
      const std::vector<std::byte> bytes((*writer)->index().objects(i).bytes(),
                                         static_cast<std::byte>(step_ & 0x3f));
      (*writer)->CopyObject(i, bytes);
    }
    return (*writer)->Finish();
  }

  static void AddObject(const ParameterSpec& parameter, ObjectKind kind, SnapshotIndex* index) {
    ArenaObject* object = index->add_objects();
    object->set_kind(kind);
    object->set_name(parameter.name);
    object->set_element(ELEMENT_F32);
    for (const int64_t length : parameter.shape) {
      object->add_shape(length);
      object->mutable_box()->add_offset(0);
      object->mutable_box()->add_length(length);
    }
    object->set_bytes(parameter.elements() * sizeof(float));
    object->set_layer(parameter.expert >= 0 ? parameter.layer : -1);
    object->set_expert(parameter.expert);
  }

  void Misbehave(const std::string& wanted) {
    std::ifstream faults(table_.spec().run().dir() + "/faults");
    uint64_t generation = 0;
    uint64_t step = 0;
    int rank = 0;
    std::string fault;
    while (faults >> generation >> rank >> step >> fault) {
      if (generation != table_.generation() || rank != rank_) continue;
      if (wanted == fault) Hang();
      if (!wanted.empty() || step != step_) continue;
      // One write: mpirun tags what it reads at a time, and may cut between pieces.
      std::cerr << fmt::format("fault {} at step {}\n", fault, step_);
      if (fault == "kill") raise(SIGKILL);
      if (fault == "hang") Hang();
      if (fault == "exit0") std::_Exit(0);
      int code = 0;
      if (fault.rfind("exit:", 0) == 0 && absl::SimpleAtoi(fault.substr(5), &code))
        std::_Exit(code);
    }
  }

  [[noreturn]] static void Hang() {
    while (true) pause();
  }

  const int rank_;
  const CoordinatorAddress address_;
  const std::unique_ptr<CoordinatorClient> client_;
  RankTable table_;
  uint64_t step_ = 0;
  uint32_t snapshots_ = 0;
  uint64_t buffer_step_[2] = {0, 0};
};

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  moesaic::CoordinatorAddress address;
  for (int i = 1; i + 1 < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--coordinator") address.target = argv[i + 1];
    if (flag == "--job") address.worker.set_job(argv[i + 1]);
    if (flag == "--generation")
      address.worker.set_generation(std::strtoull(argv[i + 1], nullptr, 10));
  }
  if (const char* coordinator = std::getenv("MOESAIC_COORDINATOR")) address.target = coordinator;
  if (const char* folder = std::getenv("MOESAIC_RUN_FOLDER")) {
    setenv("OMPI_MCA_btl_vader_backing_directory", folder, 1);
  }
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  address.worker.set_rank(rank);
  address.worker.set_incarnation(moesaic::RandomToken());
  const char* token = std::getenv("MOESAIC_TOKEN");
  address.worker.set_token(token == nullptr ? "" : token);
  int code = 0;
  {
    moesaic::FakeWorker worker(std::move(address), rank);
    code = worker.Run();
  }
  // Ranks that end alike leave together; one that failed does not wait for the others.
  if (code == 0 || code == 75) MPI_Finalize();
  std::_Exit(code);
}
