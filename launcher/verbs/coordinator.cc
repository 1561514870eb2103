#include "launcher/verbs/coordinator.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "launcher/build_info.h"
#include "launcher/run/interrupts.h"
#include "launcher/verbs/connection_flags.h"
#include "scheduler/service/server.h"

namespace moesaic {
namespace {

struct CoordinatorFlags {
  std::string listen = kDefaultCoordinator;
  std::string dir;
  TlsFlags tls;
  bool allow_chaos = false;
  SubmissionLimits submissions;
};

constexpr char kAddressFile[] = "address";

class StopRequest {
 public:
  void Set() {
    MutexLock lock(&mutex_);
    set_ = true;
    changed_.NotifyAll();
  }
  void Wait() {
    MutexLock lock(&mutex_);
    while (!set_) changed_.Wait(&mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool set_ ABSL_GUARDED_BY(mutex_) = false;
};

absl::Status MakeStateFolder(const std::string& dir) {
  std::error_code error;
  const bool made = std::filesystem::create_directories(dir, error);
  if (error || (made && chmod(dir.c_str(), 0700) != 0)) {
    return absl::InvalidArgumentError(fmt::format(
        "--dir: cannot make {}: {}", dir, error ? error.message() : strerror(errno)));
  }
  return absl::OkStatus();
}

// A reader sees the old address or the new one, never a part.
absl::Status WriteAddress(const std::string& dir, const std::string& address) {
  const std::string path = dir + "/" + kAddressFile;
  const std::string unfinished = path + ".new";
  std::ofstream file(unfinished, std::ios::trunc);
  file << address << '\n';
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(unfinished, path, error);
  if (file && !error) return absl::OkStatus();
  return absl::InternalError(fmt::format("cannot write {}", path));
}

void Serve(const CoordinatorFlags& flags, VerbContext& context) {
  StopRequest stop;
  Interrupts interrupts([&](int, int) { stop.Set(); });
  ConfigureLog("coordinator", LogLevel::kInfo);
  if (const absl::Status made = MakeStateFolder(flags.dir); !made.ok()) {
    Fail(made, context);
    return;
  }
  CoordinatorOptions options;
  options.log_events = true;
  options.store_path = flags.dir + "/coordinator.sqlite";
  options.binary = fmt::format("{} ({})", ThisBuild().version, ThisBuild().commit);
  const auto core = CoordinatorCore::Open(std::move(options));
  if (!core.ok()) {
    Fail(core.status(), context);
    return;
  }
  absl::StatusOr<std::optional<TlsIdentity>> tls = FindTls(flags.tls, ROLE_COORDINATOR, context);
  if (!tls.ok()) {
    Fail(tls.status(), context);
    return;
  }
  ServerOptions serving;
  serving.listen = flags.listen;
  serving.tls = *std::move(tls);
  serving.insecure = flags.tls.insecure;
  serving.allow_chaos = flags.allow_chaos;
  serving.submissions = flags.submissions;
  const auto server = CoordinatorServer::Start(core->get(), serving);
  if (!server.ok()) {
    Fail(server.status(), context);
    return;
  }
  if (const absl::Status written = WriteAddress(flags.dir, (*server)->address()); !written.ok()) {
    Fail(written, context);
    return;
  }
  context.out << "coordinator at " << (*server)->address() << '\n' << std::flush;
  stop.Wait();
  context.err << "stopping; agents and their ranks go on for health.orphan_grace\n";
}

}  // namespace

void RegisterCoordinator(CLI::App& program, VerbContext& context) {
  auto flags = std::make_shared<CoordinatorFlags>();
  CLI::App* verb = program.add_subcommand(
      "coordinator", "serve a cluster: jobs, nodes, generations and checkpoints");
  verb->add_option("--listen", flags->listen, "HOST:PORT to listen on; port 0: any that is free")
      ->capture_default_str();
  verb->add_option("--dir", flags->dir,
                   "Folder for what must outlive a restart; its file \"address\" says where the "
                   "coordinator listens")
      ->required();
  AddTlsFlags(verb, &flags->tls);
  verb->add_flag("--allow-chaos", flags->allow_chaos,
                 "Let moesaic chaos break jobs: for clusters that are there to be tested");
  verb->add_option("--submit-rate", flags->submissions.per_minute,
                   "Jobs a minute that one address may submit; 0: any number")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  verb->add_option("--submit-burst", flags->submissions.burst, "So many of them at once")
      ->check(CLI::Range(1u, 1000000u))
      ->capture_default_str();
  verb->add_option("--max-jobs", flags->submissions.live_jobs,
                   "Jobs that have not ended, of everyone; 0: any number")
      ->capture_default_str();
  verb->footer(
      "Runs until SIGINT or SIGTERM. Started again on the same folder it goes on: jobs keep\n"
      "their state, and generations that still run are taken over.\n\n"
      "  moesaic coordinator --listen 10.0.0.1:7470 --tls-dir /etc/moesaic --dir /var/lib/moesaic");
  verb->callback([flags, &context] { Serve(*flags, context); });
}

}  // namespace moesaic
