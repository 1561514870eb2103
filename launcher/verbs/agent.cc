#include "launcher/verbs/agent.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>

#include "base/foreign_text.h"
#include "base/log.h"
#include "launcher/agent/agent.h"
#include "launcher/build_info.h"
#include "launcher/run/interrupts.h"
#include "launcher/verbs/connection_flags.h"
#include "launcher/verbs/usable_cores.h"

namespace moesaic {
namespace {

struct AgentFlags {
  ConnectionFlags connection;
  std::string name;
  uint32_t slots = 0;
  std::string listen = "127.0.0.1:0";
  std::string advertise;
  std::string shared_memory = "/dev/shm";
  std::string worker_certificate;
  std::string worker_key;
  bool allow_chaos = false;
};

std::string HostName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0) return "";
  return name;
}

std::string BesideProgram(const VerbContext& context, const char* name) {
  return (std::filesystem::path(context.program_path).parent_path() / name).string();
}

absl::StatusOr<AgentOptions> MakeOptions(const AgentFlags& flags, const VerbContext& context) {
  AgentOptions options;
  options.name = flags.name.empty() ? HostName() : flags.name;
  if (const absl::Status named = CheckName("node", options.name); !named.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: give it one with --name", std::string(named.message())));
  }
  const TlsFlags& tls = flags.connection.tls;
  const auto own = FindTlsFiles(tls, ROLE_AGENT, context);
  if (!own.ok()) return own.status();
  options.tls_files = *own;
  const auto connection = Connect(flags.connection, ROLE_AGENT, context);
  if (!connection.ok()) return connection.status();
  const auto identity = FindTls(tls, ROLE_AGENT, context);
  if (!identity.ok()) return identity.status();
  options.tls = *identity;
  TlsFlags of_workers = tls;
  of_workers.certificate = flags.worker_certificate;
  of_workers.key = flags.worker_key;
  const auto workers = FindTls(of_workers, ROLE_WORKER, context);  // better now than in a rank
  if (!workers.ok()) return workers.status();
  if (workers->has_value()) options.worker_tls = *FindTlsFiles(of_workers, ROLE_WORKER, context);
  options.coordinator = connection->target;
  options.insecure = tls.insecure;
  options.cores = UsableCores();
  options.slots = flags.slots == 0 ? options.cores : flags.slots;
  options.listen = flags.listen;
  if (flags.advertise.empty() &&
      (flags.listen.rfind("0.0.0.0:", 0) == 0 || flags.listen.rfind("[::]:", 0) == 0)) {
    return absl::InvalidArgumentError(
        "--listen is every address of this host: give the one that others reach with --advertise");
  }
  options.advertise = flags.advertise;
  options.allow_chaos = flags.allow_chaos;
  options.version = fmt::format("{} ({})", ThisBuild().version, ThisBuild().commit);
  options.worker = BesideProgram(context, "moesaic-worker");
  options.shim = BesideProgram(context, "moesaic-orted-shim");
  options.shared_memory = flags.shared_memory;
  options.environment = context.environment;
  options.news = LogLevel::kInfo;
  return options;
}

// The first asks the coordinator to move the ranks away; the second, or one that nobody hears, ends
// at once.
void OnSignal(Agent* agent, int signal_number, int count) {
  const std::string name = fmt::format("signal {}", sigabbrev_np(signal_number));
  if (count > 1) {
    agent->Release(name + ", twice");
  } else if (agent->Preempt(name)) {
    LogInfo("{}: asking the coordinator to move the ranks off this host; once more ends at once",
            name);
  } else {
    agent->Release(name + ", and no coordinator to ask");
  }
}

void RunAgent(const AgentFlags& flags, VerbContext& context) {
  absl::StatusOr<AgentOptions> options = MakeOptions(flags, context);
  if (!options.ok()) {
    Fail(options.status(), context);
    return;
  }
  const std::string name = options->name;
  const uint32_t slots = options->slots;
  const std::string coordinator = options->coordinator;
  ConfigureLog(name, LogLevel::kInfo);
  std::unique_ptr<Agent> agent;
  std::atomic<Agent*> running{nullptr};
  Interrupts interrupts({SIGINT, SIGTERM, SIGHUP, SIGUSR1}, [&](int signal_number, int count) {
    Agent* target = running.load();
    if (target == nullptr) _exit(128 + signal_number);  // nothing has been started yet
    OnSignal(target, signal_number, count);
  });
  absl::StatusOr<std::unique_ptr<Agent>> started = Agent::Start(*std::move(options));
  if (!started.ok()) {
    Fail(started.status(), context);
    return;
  }
  agent = *std::move(started);
  running = agent.get();
  LogInfo("node {} with {} slot{} listens at {}; connecting to {}", name, slots,
          slots == 1 ? "" : "s", agent->address(), coordinator);
  const std::string reason = agent->WaitUntilReleased();
  LogInfo("leaving: {}", reason);
}

}  // namespace

void RegisterAgent(CLI::App& program, VerbContext& context) {
  auto flags = std::make_shared<AgentFlags>();
  CLI::App* verb =
      program.add_subcommand("agent", "offer this host to a coordinator, in the foreground");
  AddConnectionFlags(verb, &flags->connection);
  verb->add_option("--name", flags->name, "Name of the node (default: the host name)");
  verb->add_option("--slots", flags->slots, "Ranks that it can take (default: its cores)")
      ->check(CLI::Range(1, 4096));
  verb->add_option(
          "--listen", flags->listen,
          "HOST:PORT for other agents and for workers; jobs on several hosts need one that "
          "those reach, such as 10.0.0.7:7471")
      ->capture_default_str();
  verb->add_option("--advertise", flags->advertise,
                   "Host by which others reach this one (default: that of --listen)");
  verb->add_option("--shared-memory", flags->shared_memory,
                   "A tmpfs for snapshots and temporary files of ranks")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  verb->add_flag(
      "--allow-chaos", flags->allow_chaos,
      "Let moesaic chaos break ranks and this agent: for clusters that are there to be tested");
  verb->add_option("--worker-cert", flags->worker_certificate,
                   "Certificate that its workers prove themselves with (default: of --tls-dir)");
  verb->add_option("--worker-key", flags->worker_key, "Its private key");
  verb->footer(
      "SIGTERM, SIGINT or SIGUSR1: the ranks move to other hosts, and the agent ends with 0; a "
      "second "
      "one kills them.\n\n"
      "  moesaic agent --coordinator head:7470 --listen 10.0.0.7:7471 --tls-dir /etc/moesaic");
  verb->callback([flags, &context] { RunAgent(*flags, context); });
}

}  // namespace moesaic
