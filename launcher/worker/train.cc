#include "launcher/worker/train.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "base/exit_codes.h"
#include "launcher/build_info.h"
#include "parallel/comm/mpi.h"
#include "scheduler/client/coordinator_client.h"
#include "scheduler/client/snapshot_peer.h"
#include "trainer/loop/watchdog.h"
#include "trainer/loop/worker.h"

namespace moesaic {
namespace {

struct TrainOptions {
  std::string coordinator;
  std::string job;
  uint64_t generation = 0;
};

std::string RandomIncarnation() {
  std::array<uint64_t, 2> bits = {};
  if (getrandom(bits.data(), sizeof(bits), 0) != sizeof(bits)) bits[0] = getpid();
  return fmt::format("{:016x}{:016x}", bits[0], bits[1]);
}

int ExitCodeOf(WorkerEnd end) {
  switch (end) {
    case WorkerEnd::kTrained: return kExitOk;
    case WorkerEnd::kStopped: return kExitPlannedRestart;
    case WorkerEnd::kStale: return kExitStaleGeneration;
    case WorkerEnd::kMismatch: return kExitMismatch;
    case WorkerEnd::kCorrupt: return kExitDataCorrupt;
    case WorkerEnd::kBadCheckpoint: return kExitCheckpointInvalid;
    case WorkerEnd::kSnapshotLost: return kExitSnapshotLost;
    case WorkerEnd::kBadInput: return kExitUsage;
    case WorkerEnd::kFailed: return kExitJobFailed;
  }
  return kExitJobFailed;
}

[[noreturn]] void Leave(int exit_code) {
  std::fflush(nullptr);
  _exit(exit_code);
}

std::string DescribeBuild() {
  const BuildInfo& build = ThisBuild();
  return fmt::format("{} {} {} {}", build.version, build.commit, build.compiler, build.build_type);
}

std::unique_ptr<Watchdog> MakeWatchdog() {
  return std::make_unique<Watchdog>(WatchdogOptions{.expired = [](const std::string& dump) {
    LogError("{}", dump);
    Leave(kExitWatchdog);
  }});
}

absl::StatusOr<std::optional<TlsIdentity>> LoadWorkerTls(const WorkerEnvironment& environment) {
  if (!environment.tls.ok()) return environment.tls.status();
  return LoadTls(*environment.tls, Clock::System().Now());
}

// A rank does not outlive mpirun's daemon on its host, nor that its agent. What it shares with the
// other ranks of the host goes where the agent removes it, whose place differs by host.
void TieToHost(const WorkerEnvironment& environment) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (environment.run_folder.empty()) return;
  setenv("OMPI_MCA_btl_vader_backing_directory", environment.run_folder.c_str(), 1);
}

int RunTrain(const TrainOptions& options, const WorkerEnvironment& environment) {
  TieToHost(environment);
  const auto tls = LoadWorkerTls(environment);
  if (!tls.ok()) {
    LogError("{}", std::string(tls.status().message()));
    Leave(kExitPermission);
  }
  const std::unique_ptr<Watchdog> watchdog = MakeWatchdog();
  auto mpi = MpiRuntime::Create(watchdog.get());
  if (!mpi.ok()) {
    LogError("{}", std::string(mpi.status().message()));
    Leave(kExitJobFailed);
  }
  ConfigureLog(fmt::format("rank {}", (*mpi)->rank()), environment.log_level);
  WorkerIdentity identity;
  identity.set_job(options.job);
  identity.set_generation(options.generation);
  identity.set_incarnation(RandomIncarnation());
  identity.set_rank((*mpi)->rank());
  identity.set_token(environment.token);
  WorkerResult result;
  {
    const std::unique_ptr<Communicator> world = (*mpi)->World();
    const std::unique_ptr<CoordinatorClient> client =
        ConnectToCoordinator({.target = options.coordinator, .worker = identity, .tls = *tls});
    result = RunWorker({.client = client.get(),
                        .world = world.get(),
                        .watchdog = watchdog.get(),
                        .identity = identity,
                        .open_peer =
                            [&tls](const std::string& address) {
                              return ConnectToSnapshotPeer(address, *tls);
                            },
                        .binary = DescribeBuild()});
  }
  watchdog->Stop();
  if (!result.status.ok()) LogError("{}", std::string(result.status.message()));
  if (result.end != WorkerEnd::kTrained && result.end != WorkerEnd::kStopped) {
    Leave(ExitCodeOf(result.end));
  }
  mpi->reset();
  return ExitCodeOf(result.end);
}

}  // namespace

void RegisterTrain(CLI::App& program, const WorkerEnvironment& environment, int& exit_code) {
  CLI::App* verb = program.add_subcommand("train", "Run one rank of a generation (under mpirun)");
  auto options = std::make_shared<TrainOptions>();
  verb->add_option("--coordinator", options->coordinator, "host:port")
      ->envname("MOESAIC_COORDINATOR")
      ->required();
  verb->add_option("--job", options->job, "name of the job")->required();
  verb->add_option("--generation", options->generation, "number of the generation")->required();
  verb->callback(
      [options, environment, &exit_code] { exit_code = RunTrain(*options, environment); });
}

}  // namespace moesaic
