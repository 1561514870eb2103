// A worker without a model, for the tests of the scheduler and the agent. It trains nothing, but
// does all else that a worker does: rank table, ready, progress, control word, snapshots, exit
// codes. What it saves depends on object and step, and is checked when it starts from a checkpoint.
//
// "fake_worker check STEP_FOLDER" does only that: exit code 0, or 89.
//
// It keeps score in <run.dir>: "acknowledged" has the steps that it was told were committed; a
// generation that starts from an older one says so in "lost", and so does one whose checkpoint
// holds other bytes than were saved.
//
// It misbehaves as <run.dir>/faults says: lines "GENERATION RANK STEP FAULT", where FAULT is kill,
// exit0, exit:<code>, hang or late (never ready; STEP does not matter).
#include <fmt/format.h>

#include <mpi.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "scheduler/client/coordinator_client.h"
#include "scheduler/client/credentials.h"
#include "scheduler/client/random_token.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/object_reader.h"
#include "trainer/checkpoint/format/snapshot_arena.h"

namespace moesaic {
namespace {

constexpr absl::Duration kStepTime = absl::Milliseconds(20);

std::vector<std::byte> Content(ObjectKind kind, const std::string& name, size_t size,
                               uint64_t step) {
  const std::string text = fmt::format("{} of {} at step {}", static_cast<int>(kind), name, step);
  const uint64_t word = Xxh3Short(std::as_bytes(std::span<const char>(text)));
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(word >> (8 * (i % 8)));
  return bytes;
}

// The step of a checkpoint that holds what was saved.
absl::StatusOr<uint64_t> CheckCheckpoint(const std::string& path) {
  const auto folder = OpenCheckpoint(&FileSystem::System(), path);
  if (!folder.ok()) return folder.status();
  const auto manifest = ReadManifest(*folder->folder);
  if (!manifest.ok()) return manifest.status();
  const uint64_t step = manifest->state().step();
  ObjectReader reader(folder->folder.get(), &*manifest);
  for (const StoredObject& object : manifest->objects()) {
    uint64_t elements = 1;
    for (const uint64_t length : object.shape()) elements *= length;
    std::vector<std::byte> bytes(elements * sizeof(float));
    if (absl::Status read = reader.Read(object, 0, elements, bytes); !read.ok()) return read;
    if (bytes != Content(object.kind(), object.name(), bytes.size(), step)) {
      return absl::DataLossError(
          fmt::format("{} of step {} is not what was saved", object.name(), step));
    }
  }
  return step;
}

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
    if (step_ < NewestAcknowledged()) {
      return Lose(fmt::format("generation {} starts from step {}, and step {} was acknowledged",
                              table_.generation(), step_, NewestAcknowledged()));
    }
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
    const absl::StatusOr<uint64_t> step = CheckCheckpoint(table_.restore_path());
    if (!step.ok()) return Lose(step.status().ToString());
    step_ = *step;
    return 0;
  }

  uint64_t NewestAcknowledged() const {
    std::ifstream file(table_.spec().run().dir() + "/acknowledged");
    uint64_t newest = 0;
    for (uint64_t step = 0; file >> step;) newest = std::max(newest, step);
    return newest;
  }

  void KeepScore() {
    const uint64_t committed = client_->LatestControl().committed_step();
    if (rank_ != 0 || committed <= acknowledged_) return;
    acknowledged_ = committed;
    std::ofstream(table_.spec().run().dir() + "/acknowledged", std::ios::app) << committed << '\n';
  }

  int Lose(const std::string& what) const {
    std::ofstream(table_.spec().run().dir() + "/lost", std::ios::app) << what << '\n';
    std::cerr << what << '\n';
    return 89;
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
      KeepScore();
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

  // The ranks have the experts in turn, and the dense parameters.
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
    int dense = 0;
    for (const ParameterSpec& parameter : catalog->parameters()) {
      const int turn = parameter.expert >= 0 ? parameter.expert : dense++;
      if (turn % table_.ranks_size() != rank_) continue;
      for (const ObjectKind kind : {MASTER, ADAM_M, ADAM_V}) {
        if (kind != MASTER && table_.spec().train().optimizer().has_sgd()) continue;
        AddObject(parameter, kind, &index);
      }
    }
    const std::string path = table_.ranks(rank_).arena_path() + "." + std::to_string(buffer);
    auto writer = SnapshotWriter::Create(path, std::move(index));
    if (!writer.ok()) return writer.status();
    for (int i = 0; i < (*writer)->index().objects_size(); ++i) {
      const ArenaObject& object = (*writer)->index().objects(i);
      (*writer)->CopyObject(i, Content(object.kind(), object.name(), object.bytes(), step_));
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
  uint64_t acknowledged_ = 0;
  uint64_t buffer_step_[2] = {0, 0};
};

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "check") {
    const absl::StatusOr<uint64_t> step = moesaic::CheckCheckpoint(argv[2]);
    if (!step.ok()) std::cerr << step.status() << '\n';
    return step.ok() ? 0 : 89;
  }
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
  std::map<std::string, std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(*entry, absl::MaxSplits('=', 1));
    variables.insert(parts);
  }
  address.worker.set_token(variables["MOESAIC_TOKEN"]);
  const auto tls = moesaic::TlsFilesFrom(variables);
  if (tls.ok()) address.tls = *moesaic::LoadTls(*tls, absl::Now());
  int code = 0;
  {
    moesaic::FakeWorker worker(std::move(address), rank);
    code = worker.Run();
  }
  // Ranks that end alike leave together; one that failed does not wait for the others.
  if (code == 0 || code == 75) MPI_Finalize();
  std::_Exit(code);
}
