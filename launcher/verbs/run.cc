#include "launcher/verbs/run.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <iostream>
#include <memory>

#include "launcher/build_info.h"
#include "launcher/run/embedded_run.h"
#include "launcher/run/interrupts.h"
#include "launcher/run/progress_view.h"
#include "launcher/run/run_summary.h"
#include "launcher/verbs/job_flags.h"
#include "launcher/verbs/usable_cores.h"

namespace moesaic {
namespace {

struct RunFlags {
  JobFlags job;
  std::string resume = "auto";
  std::string slots;
  std::string output = "text";
};

// Ctrl-C once saves and stops; twice kills.
void OnInterrupt(EmbeddedRun* run, int count, std::atomic<bool>* killed) {
  if (count > 1) *killed = true;
  const absl::Status status = run->Stop(count > 1);
  const char* text = count > 1
                         ? "killing the job\n"
                         : "saving, then stopping; once more to kill the job without saving\n";
  const std::string line =
      status.ok() ? text : fmt::format("cannot stop: {}\n", std::string(status.message()));
  if (write(STDERR_FILENO, line.data(), line.size()) < 0) return;  // nobody is left to tell
}

void FailToStart(const absl::Status& status, VerbContext& context) {
  Fail(status, context);
  if (absl::IsResourceExhausted(status)) context.exit_code = kExitNoResources;
  if (absl::IsInvalidArgument(status)) context.exit_code = kExitUsage;
}

void Run(const RunFlags& flags, VerbContext& context) {
  const std::optional<LoadedJob> job = LoadJobOrFail(flags.job, JobInputs::kAll, context);
  if (!job) return;
  EmbeddedRunOptions options;
  options.spec = job->spec;
  options.resume = flags.resume;
  options.worker =
      (std::filesystem::path(context.program_path).parent_path() / "moesaic-worker").string();
  options.binary = fmt::format("{} ({})", ThisBuild().version, ThisBuild().commit);
  options.cores = UsableCores();
  options.environment = context.environment;

  std::unique_ptr<EmbeddedRun> run;
  std::atomic<EmbeddedRun*> stoppable{nullptr};
  std::atomic<bool> killed{false};
  Interrupts interrupts([&](int, int count) {
    EmbeddedRun* target = stoppable.load();
    if (target == nullptr) _exit(kExitInterrupted);  // nothing has been started yet
    OnInterrupt(target, count, &killed);
  });
  absl::StatusOr<std::unique_ptr<EmbeddedRun>> started = EmbeddedRun::Start(std::move(options));
  if (!started.ok()) {
    FailToStart(started.status(), context);
    return;
  }
  run = *std::move(started);
  stoppable = run.get();

  ProgressView view(isatty(STDERR_FILENO) == 1, context.err, Clock::System());
  const absl::StatusOr<JobStatus> status =
      run->Follow([&](const JobEvent& event) { view.Take(event); });
  view.Finish();
  if (!status.ok()) {
    Fail(status.status(), context);
    return;
  }
  context.out << (flags.output == "json" ? SummaryJson(*status) : SummaryText(*status)) << '\n'
              << std::flush;
  context.exit_code = RunExitCode(*status, interrupts.first(), killed);
}

}  // namespace

void RegisterRun(CLI::App& program, VerbContext& context) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* verb = program.add_subcommand("run", "train a job on this host, and watch it");
  AddJobFlags(verb, &flags->job);
  AddResumeFlag(verb, &flags->resume);
  verb->add_option("--slots", flags->slots, "ranks on this host (elastic.slots_per_node)");
  verb->add_option("-o,--output", flags->output, "json: one JSON object as the last line of stdout")
      ->check(CLI::IsMember({"text", "json"}));
  verb->callback([flags, &context] {
    if (!flags->slots.empty()) {
      flags->job.flags.push_back({"--slots", "elastic.slots_per_node", flags->slots});
    }
    Run(*flags, context);
  });
}

}  // namespace moesaic
