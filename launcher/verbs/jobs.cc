#include "launcher/verbs/jobs.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "base/clock.h"
#include "launcher/verbs/cluster_client.h"
#include "launcher/verbs/job_view.h"
#include "scheduler/state/cluster_state.h"

namespace moesaic {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(300);

struct JobVerbFlags {
  ConnectionFlags cluster;
  std::string job;
  std::string output;
  std::string state;
  std::string nodes;
  std::string timeout;
  bool watch = false;
  bool now = false;
};
using SharedFlags = std::shared_ptr<JobVerbFlags>;
using JobVerb = void (*)(const JobVerbFlags& flags, ClusterClient* client, VerbContext& context);

// A sub-command that talks to the coordinator; `takes_job`: its first argument is one.
CLI::App* AddVerb(CLI::App& program, VerbContext& context, const char* name, const char* what,
                  bool takes_job, const SharedFlags& flags, JobVerb verb) {
  CLI::App* app = program.add_subcommand(name, what);
  if (takes_job) app->add_option("JOB", flags->job, "the job's id")->required();
  AddConnectionFlags(app, &flags->cluster);
  app->callback([flags, &context, verb] {
    const auto client = ClusterClient::Open(flags->cluster, context);
    if (!client.ok()) {
      Fail(client.status(), context);
      return;
    }
    verb(*flags, client->get(), context);
  });
  return app;
}

// ---- list ----

std::string StepCell(const JobStatus& job) {
  return fmt::format("{}/{}", job.last_step().step(), job.total_steps());
}

std::string SavedCell(const JobStatus& job) {
  return job.committed_path().empty() ? "-" : std::to_string(job.committed_step());
}

std::string NodesCell(const JobStatus& job) {
  const auto active = std::count_if(job.nodes().begin(), job.nodes().end(),
                                    [](const JobNode& node) { return !node.spare(); });
  return HasEnded(job.state()) ? "-" : std::to_string(active);
}

void List(const JobVerbFlags& flags, ClusterClient* client, VerbContext& context) {
  ListJobsReply reply;
  const absl::Status listed = client->Call([&](grpc::ClientContext* call) {
    return client->stub().ListJobs(call, ListJobsRequest(), &reply);
  });
  if (!listed.ok()) {
    Fail(listed, context);
    return;
  }
  const absl::Time now = Clock::System().Now();
  Table table({"JOB", "STATE", "GENERATION", "NODES", "STEP", "SAVED", "AGE", "REASON"});
  Json jobs = Json::array();
  for (const JobStatus& job : reply.jobs()) {
    if (!flags.state.empty() && JobState_Name(job.state()) != flags.state) continue;
    jobs.push_back(StatusJson(job, now));
    table.Add({job.job(), JobState_Name(job.state()), std::to_string(job.generation()),
               NodesCell(job), StepCell(job), SavedCell(job),
               AgeForPeople(job.submitted_unix_ns(), now), job.reason()});
  }
  if (flags.output == "json") {
    context.out << JsonLine({{"jobs", jobs}}) << '\n' << std::flush;
  } else {
    table.Print(context.out);
  }
}

std::string CheckState(std::string& text) {
  text = absl::AsciiStrToUpper(text);
  JobState state;
  return JobState_Parse(text, &state) && state != JOB_UNKNOWN ? "" : "is not a state of a job";
}

// ---- status ----

void PrintStatus(const JobVerbFlags& flags, const JobStatus& status, VerbContext& context) {
  const absl::Time now = Clock::System().Now();
  if (flags.output == "json") {
    context.out << JsonLine(StatusJson(status, now)) << '\n' << std::flush;
  } else {
    context.out << StatusText(status, now) << std::flush;
  }
}

void Status(const JobVerbFlags& flags, ClusterClient* client, VerbContext& context) {
  const bool terminal = flags.output != "json" && isatty(STDOUT_FILENO) == 1;
  while (true) {
    const absl::StatusOr<JobStatus> status = GetJob(client, flags.job);
    if (!status.ok()) {
      Fail(status.status(), context);
      return;
    }
    if (flags.watch && terminal) context.out << "\033[H\033[2J";
    PrintStatus(flags, *status, context);
    if (!flags.watch || HasEnded(status->state())) return;
    std::this_thread::sleep_for(absl::ToChronoMilliseconds(absl::Seconds(1)));
  }
}

// ---- stop, resize ----

void Stop(const JobVerbFlags& flags, ClusterClient* client, VerbContext& context) {
  StopJobRequest request;
  request.set_job(flags.job);
  request.set_now(flags.now);
  StopJobReply reply;
  const absl::Status stopped = client->Call([&](grpc::ClientContext* call) {
    return client->stub().StopJob(call, request, &reply);
  });
  if (!stopped.ok()) {
    Fail(stopped, context);
    return;
  }
  context.err << (flags.now ? "it is being killed" : "it saves, then stops")
              << "; moesaic wait " << flags.job << " returns when it has ended\n";
}

void Resize(const JobVerbFlags& flags, ClusterClient* client, VerbContext& context) {
  ResizeJobRequest request;
  request.set_job(flags.job);
  uint32_t min_nodes = 0;
  uint32_t max_nodes = 0;
  ParseNodeRange(flags.nodes, &min_nodes, &max_nodes);
  request.set_min_nodes(min_nodes);
  request.set_max_nodes(max_nodes);
  ResizeJobReply reply;
  const absl::Status resized = client->Call([&](grpc::ClientContext* call) {
    return client->stub().ResizeJob(call, request, &reply);
  });
  if (!resized.ok()) Fail(resized, context);
}

std::string CheckNodeRange(const std::string& text) {
  uint32_t min_nodes = 0;
  uint32_t max_nodes = 0;
  return ParseNodeRange(text, &min_nodes, &max_nodes) ? "" : "must be MIN:MAX, such as 2:4, or N";
}

// ---- wait ----

// Nothing when the time is up, or when the coordinator was never reached (then `*error` says so).
// A coordinator that goes away meanwhile is waited for.
std::optional<JobStatus> WaitForEnd(const std::string& job, absl::Time deadline,
                                    ClusterClient* client, VerbContext& context,
                                    absl::Status* error) {
  bool reached = false;
  bool said = false;
  while (true) {
    const absl::StatusOr<JobStatus> status = GetJob(client, job);
    if (status.ok()) {
      reached = true;
      said = false;
      if (HasEnded(status->state())) return *status;
    } else if (!reached || !absl::IsUnavailable(status.status())) {
      *error = status.status();
      return std::nullopt;
    } else if (!std::exchange(said, true)) {
      context.err << std::string(status.status().message()) << "; trying again\n" << std::flush;
    }
    if (Clock::System().Now() >= deadline) {
      *error = absl::DeadlineExceededError(fmt::format(
          "job {} is {} still", job, status.ok() ? JobState_Name(status->state()) : "not known"));
      return std::nullopt;
    }
    std::this_thread::sleep_for(absl::ToChronoMilliseconds(kPoll));
  }
}

void Wait(const JobVerbFlags& flags, ClusterClient* client, VerbContext& context) {
  absl::Duration timeout = absl::InfiniteDuration();
  if (!flags.timeout.empty()) absl::ParseDuration(flags.timeout, &timeout);
  absl::Status error;
  const std::optional<JobStatus> ended =
      WaitForEnd(flags.job, Clock::System().Now() + timeout, client, context, &error);
  if (!ended) {
    Fail(error, context);
    return;
  }
  context.err << StatusText(*ended, Clock::System().Now()) << std::flush;
  context.exit_code = ended->exit_code();
}

}  // namespace

void RegisterList(CLI::App& program, VerbContext& context) {
  const auto flags = std::make_shared<JobVerbFlags>();
  CLI::App* verb = AddVerb(program, context, "list", "the coordinator's jobs, oldest first", false,
                           flags, List);
  verb->add_option("--state", flags->state, "Only jobs in this state, e.g. RUNNING")
      ->transform(CLI::Validator(CheckState, "STATE"));
  AddOutputFormat(verb, &flags->output);
}

void RegisterStatus(CLI::App& program, VerbContext& context) {
  const auto flags = std::make_shared<JobVerbFlags>();
  CLI::App* verb = AddVerb(program, context, "status",
                           "what a job does, on which nodes, what failed and what happens next",
                           true, flags, Status);
  verb->add_flag("--watch", flags->watch, "Again each second until the job ends");
  AddOutputFormat(verb, &flags->output);
}

void RegisterStop(CLI::App& program, VerbContext& context) {
  const auto flags = std::make_shared<JobVerbFlags>();
  CLI::App* verb = AddVerb(program, context, "stop", "save a job, then end it", true, flags, Stop);
  verb->add_flag("--now", flags->now, "Kill it without saving");
  verb->footer("Returns when the request is durable. To wait for the end: moesaic wait JOB.");
}

void RegisterWait(CLI::App& program, VerbContext& context) {
  const auto flags = std::make_shared<JobVerbFlags>();
  CLI::App* verb = AddVerb(program, context, "wait",
                           "wait for the end of a job; the exit code is the job's", true, flags,
                           Wait);
  verb->add_option("--timeout", flags->timeout, "Give up after so long, e.g. 1h (exit code 6)")
      ->check(CheckDuration);
}

void RegisterResize(CLI::App& program, VerbContext& context) {
  const auto flags = std::make_shared<JobVerbFlags>();
  CLI::App* verb = AddVerb(program, context, "resize",
                           "other bounds for the number of a job's nodes, while it runs", true,
                           flags, Resize);
  verb->add_option("--nodes", flags->nodes, "MIN:MAX, or one number for both")
      ->required()
      ->check(CheckNodeRange);
  verb->footer(
      "Nodes join and leave at an agreed step: nothing is computed twice. Holds until the job "
      "ends\n"
      "or is resized again.\n\n  moesaic resize my-job --nodes 2:4");
}

}  // namespace moesaic
