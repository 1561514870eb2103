#include "launcher/verbs/events.h"

#include <algorithm>
#include <memory>
#include <thread>
#include <utility>

#include "launcher/verbs/cluster_client.h"
#include "launcher/verbs/job_view.h"

namespace moesaic {
namespace {

constexpr auto kRetry = std::chrono::milliseconds(500);

struct EventFlags {
  ConnectionFlags cluster;
  std::string job;
  std::string output;
  uint64_t after = 0;
  bool follow = false;
  bool steps = false;
};

class EventPrinter {
 public:
  EventPrinter(const EventFlags& flags, VerbContext& context)
      : flags_(flags), context_(context), after_(flags.after) {}

  uint64_t after() const { return after_; }

  void Print(const JobEvent& event) {
    after_ = event.sequence();
    if (event.has_step() && !flags_.steps) return;
    if (flags_.output == "json") {
      context_.out << JsonLine(EventJson(event)) << '\n' << std::flush;
      return;
    }
    // A status is sent for every change of its numbers; people want to see changes of state.
    const std::string text = EventText(event);
    const std::string shown = event.has_status() ? text.substr(text.find("  ")) : "";
    if (event.has_status() && shown == std::exchange(status_, shown)) return;
    context_.out << text << '\n' << std::flush;
  }

 private:
  const EventFlags& flags_;
  VerbContext& context_;
  uint64_t after_;
  std::string status_;
};

// Up to `newest` when it is not 0, else until the stream ends.
absl::Status Read(ClusterClient* client, const EventFlags& flags, uint64_t newest,
                  EventPrinter* printer) {
  grpc::ClientContext context;
  context.set_wait_for_ready(flags.follow);  // over a restart of the coordinator
  WatchJobRequest request;
  request.set_job(flags.job);
  request.set_after_sequence(printer->after());
  const auto stream = client->stub().WatchJob(&context, request);
  JobEvent event;
  while (stream->Read(&event)) {
    printer->Print(event);
    if (newest != 0 && event.sequence() >= newest) {
      context.TryCancel();
      stream->Finish();
      return absl::OkStatus();
    }
  }
  return client->Explain(stream->Finish());
}

void Events(const EventFlags& flags, VerbContext& context) {
  const auto client = ClusterClient::Open(flags.cluster, context);
  if (!client.ok()) {
    Fail(client.status(), context);
    return;
  }
  const absl::StatusOr<JobStatus> status = GetJob(client->get(), flags.job);
  if (!status.ok()) {
    Fail(status.status(), context);
    return;
  }
  const uint64_t newest = flags.follow ? 0 : status->newest_event();
  EventPrinter printer(flags, context);
  if (!flags.follow && printer.after() >= newest) return;
  bool said = false;
  while (true) {
    const uint64_t before = printer.after();
    const absl::Status ended = Read(client->get(), flags, newest, &printer);
    if (ended.ok()) return;
    if (!absl::IsUnavailable(ended) || !flags.follow) {
      Fail(ended, context);
      return;
    }
    if (printer.after() != before) said = false;
    if (!std::exchange(said, true)) {
      context.err << std::string(ended.message()) << "; trying again\n" << std::flush;
    }
    std::this_thread::sleep_for(kRetry);
  }
}

}  // namespace

void RegisterEvents(CLI::App& program, VerbContext& context) {
  auto flags = std::make_shared<EventFlags>();
  CLI::App* verb = program.add_subcommand(
      "events", "what happened to a job: joins, losses, plans, failures, commits, with reasons");
  verb->add_option("JOB", flags->job, "the job's id")->required();
  verb->add_flag("-f,--follow", flags->follow,
                 "Go on until the job has ended, also when the coordinator is restarted");
  verb->add_flag("--steps", flags->steps, "Each training step, too");
  verb->add_option("--after", flags->after, "Only events with a larger sequence number");
  AddOutputFormat(verb, &flags->output);
  AddConnectionFlags(verb, &flags->cluster);
  verb->footer("With -o json one object a line.\n\n  moesaic events -f my-job");
  verb->callback([flags, &context] { Events(*flags, context); });
}

}  // namespace moesaic
