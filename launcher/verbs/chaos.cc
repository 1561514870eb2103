#include "launcher/verbs/chaos.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "launcher/chaos/chaos_judge.h"
#include "launcher/chaos/chaos_schedule.h"
#include "launcher/verbs/cluster_client.h"

namespace moesaic {
namespace {

constexpr absl::Duration kReconnectDelay = absl::Milliseconds(200);
constexpr absl::Duration kLook = absl::Milliseconds(20);

struct ChaosFlags {
  ConnectionFlags connection;
  std::string file;
  std::optional<uint64_t> seed;
  bool dry_run = false;
  std::string output = "text";
};

// A job's events as they come, over restarts of the coordinator.
class EventFeed {
 public:
  EventFeed(ClusterClient* client, std::string job, absl::Time since)
      : client_(client), job_(std::move(job)), since_(since), thread_([this] { Run(); }) {}
  ~EventFeed() {
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      if (context_ != nullptr) context_->TryCancel();
      changed_.NotifyAll();
    }
    thread_.join();
  }

  // What came since the last call; waits a moment for the first.
  std::deque<JobEvent> Take() {
    MutexLock lock(&mutex_);
    if (events_.empty()) changed_.WaitFor(&mutex_, kLook);
    return std::exchange(events_, {});
  }

 private:
  void Run() {
    uint64_t after = 0;
    while (true) {
      grpc::ClientContext context;
      context.set_wait_for_ready(true);
      {
        MutexLock lock(&mutex_);
        if (stopping_) return;
        context_ = &context;
      }
      WatchJobRequest request;
      request.set_job(job_);
      request.set_after_sequence(after);
      const auto stream = client_->stub().WatchJob(&context, request);
      JobEvent event;
      while (stream->Read(&event)) {
        after = event.sequence();
        if (absl::FromUnixNanos(event.unix_ns()) < since_) continue;
        MutexLock lock(&mutex_);
        events_.push_back(event);
        changed_.NotifyAll();
      }
      stream->Finish();
      MutexLock lock(&mutex_);
      context_ = nullptr;
      if (!stopping_) changed_.WaitFor(&mutex_, kReconnectDelay);
    }
  }

  ClusterClient* const client_;
  const std::string job_;
  const absl::Time since_;
  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::deque<JobEvent> events_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

// One chaos run. Faults are injected one after the other: each only when training goes on after the
// one before, so that what it cost can be told.
class ChaosRun {
 public:
  ChaosRun(const ChaosSchedule& schedule, ClusterClient* client, VerbContext* context)
      : schedule_(schedule), client_(*client), context_(*context), random_(schedule.seed),
        judge_(schedule.recover_within) {
    for (PlannedFault& fault : FaultsOf(schedule)) {
      (fault.at.step ? by_step_ : by_time_).push_back(std::move(fault));
    }
  }

  absl::Status Run() {
    const absl::StatusOr<JobStatus> job = GetJob(&client_, schedule_.job);
    if (!job.ok()) return job.status();
    start_ = Now();
    JobEvent now;
    *now.mutable_status() = *job;
    judge_.Take(now, start_);
    EventFeed feed(&client_, schedule_.job, start_);
    while (!judge_.ended() && !(judge_.calm() && by_step_.empty() && by_time_.empty())) {
      for (const JobEvent& event : feed.Take()) judge_.Take(event, Now());
      judge_.Tick(Now());
      if (const absl::Status status = InjectDue(); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  const ChaosJudge& judge() const { return judge_; }

 private:
  static absl::Time Now() { return Clock::System().Now(); }

  absl::Status InjectDue() {
    // Nothing is known of the job before its first step is seen.
    if (!judge_.calm() || judge_.ended() || judge_.step() == 0) return absl::OkStatus();
    if (!by_time_.empty() && Now() >= start_ + by_time_.front().at.time) return Inject(&by_time_);
    if (!by_step_.empty() && judge_.step() >= *by_step_.front().at.step) return Inject(&by_step_);
    return absl::OkStatus();
  }

  absl::Status Inject(std::deque<PlannedFault>* from) {
    PlannedFault fault = std::move(from->front());
    from->pop_front();
    const absl::StatusOr<InjectFaultRequest> request = RequestFor(fault);
    if (!request.ok()) return request.status();
    fault.target.node = request->node();
    InjectFaultReply reply;
    judge_.Injected(fault, Now());
    const absl::Status status = client_.Call([&](grpc::ClientContext* context) {
      return client_.stub().InjectFault(context, *request, &reply);
    });
    // A coordinator that was killed does not answer.
    const bool killed = fault.target.kind == ChaosTarget::kCoordinator;
    if (!status.ok() && !(killed && absl::IsUnavailable(status))) {
      if (absl::IsPermissionDenied(status)) return status;
      judge_.Withdraw();
      context_.err << fmt::format("step {}: no {}: {}\n", judge_.step(), fault.text,
                                  std::string(status.message()));
      return absl::OkStatus();
    }
    context_.err << fmt::format("step {}: {}{}{}\n", judge_.step(), fault.text,
                                reply.done().empty() ? "" : ": ", reply.done());
    return absl::OkStatus();
  }

  absl::StatusOr<InjectFaultRequest> RequestFor(const PlannedFault& fault) {
    InjectFaultRequest request;
    request.set_job(schedule_.job);
    *request.mutable_fault() = fault.fault;
    request.set_seed(random_());
    switch (fault.target.kind) {
      case ChaosTarget::kRank: {
        const uint32_t ranks = std::max<uint32_t>(judge_.ranks(), 1);
        request.set_rank(fault.target.rank.value_or(static_cast<uint32_t>(random_() % ranks)));
        break;
      }
      case ChaosTarget::kNode: {
        absl::StatusOr<std::string> node = fault.target.node;
        if (node->empty()) node = SomeNode();
        if (!node.ok()) return node.status();
        request.set_node(*node);
        break;
      }
      case ChaosTarget::kCoordinator:
        request.set_coordinator(true);
        break;
      case ChaosTarget::kCheckpoint:
        request.set_checkpoint(true);
        break;
    }
    return request;
  }

  // Of those that the job runs on.
  absl::StatusOr<std::string> SomeNode() {
    const absl::StatusOr<JobStatus> job = GetJob(&client_, schedule_.job);
    if (!job.ok()) return job.status();
    std::vector<std::string> nodes;
    for (const JobNode& node : job->nodes()) {
      if (!node.spare()) nodes.push_back(node.node());
    }
    if (nodes.empty()) return absl::UnavailableError("the job has no nodes");
    return nodes[random_() % nodes.size()];
  }

  const ChaosSchedule& schedule_;
  ClusterClient& client_;
  VerbContext& context_;
  std::mt19937_64 random_;
  absl::Time start_;
  ChaosJudge judge_;
  std::deque<PlannedFault> by_time_;
  std::deque<PlannedFault> by_step_;
};

std::string Seconds(const std::optional<absl::Duration>& time) {
  return time ? fmt::format("{:.2f} s", absl::ToDoubleSeconds(*time)) : "-";
}

void PrintText(const ChaosSchedule& schedule, const ChaosJudge& judge, std::ostream& out) {
  out << fmt::format("seed {}\n{:<32}  {:>8}  {:>10}  {:>14}  {:>10}\n", schedule.seed, "FAULT",
                     "AT STEP", "DETECTED", "TRAINING AGAIN", "STEPS LOST");
  for (const FaultCost& cost : judge.costs()) {
    out << fmt::format("{:<32}  {:>8}  {:>10}  {:>14}  {:>10}\n", cost.fault, cost.step,
                       Seconds(cost.detected), Seconds(cost.training_again), cost.steps_lost);
  }
  for (const std::string& violation : judge.violations()) out << "VIOLATED " << violation << '\n';
}

void PrintJson(const ChaosSchedule& schedule, const ChaosJudge& judge, std::ostream& out) {
  using Json = nlohmann::ordered_json;
  const auto seconds = [](const std::optional<absl::Duration>& time) {
    return time ? Json(absl::ToDoubleSeconds(*time)) : Json(nullptr);
  };
  Json faults = Json::array();
  for (const FaultCost& cost : judge.costs()) {
    faults.push_back({{"fault", cost.fault},
                      {"step", cost.step},
                      {"generation", cost.generation},
                      {"detected_seconds", seconds(cost.detected)},
                      {"training_again_seconds", seconds(cost.training_again)},
                      {"steps_lost", cost.steps_lost}});
  }
  out << Json{{"seed", schedule.seed}, {"faults", faults}, {"violations", judge.violations()}}
             .dump()
      << '\n';
}

absl::StatusOr<ChaosSchedule> ReadSchedule(const ChaosFlags& flags) {
  std::ifstream file(flags.file, std::ios::binary);
  if (!file) return absl::NotFoundError(fmt::format("cannot read {}", flags.file));
  absl::StatusOr<ChaosSchedule> schedule =
      ParseChaosSchedule(flags.file, {std::istreambuf_iterator<char>(file), {}});
  if (schedule.ok() && flags.seed) schedule->seed = *flags.seed;
  return schedule;
}

void RunChaos(const ChaosFlags& flags, VerbContext& context) {
  const absl::StatusOr<ChaosSchedule> schedule = ReadSchedule(flags);
  if (!schedule.ok()) return Fail(schedule.status(), context);
  if (flags.dry_run) {
    for (const PlannedFault& fault : FaultsOf(*schedule)) {
      context.out << fmt::format("{:<10}  {}\n",
                                 fault.at.step ? fmt::format("step {}", *fault.at.step)
                                               : absl::FormatDuration(fault.at.time),
                                 fault.text);
    }
    return;
  }
  const auto client = ClusterClient::Open(flags.connection, context);
  if (!client.ok()) return Fail(client.status(), context);
  context.err << fmt::format("chaos for {}: seed {}\n", schedule->job, schedule->seed);
  ChaosRun run(*schedule, client->get(), &context);
  if (const absl::Status status = run.Run(); !status.ok()) return Fail(status, context);
  (flags.output == "json" ? PrintJson : PrintText)(*schedule, run.judge(), context.out);
  if (!run.judge().violations().empty()) context.exit_code = kExitJobFailed;
}

}  // namespace

void RegisterChaos(CLI::App& program, VerbContext& context) {
  auto flags = std::make_shared<ChaosFlags>();
  CLI::App* verb = program.add_subcommand(
      "chaos", "break things under a running job on purpose, and judge how it recovers");
  AddConnectionFlags(verb, &flags->connection);
  verb->add_option("-f,--file", flags->file, "the schedule of faults (docs/chaos.md)")->required();
  verb->add_option("--seed", flags->seed, "in place of the schedule's");
  verb->add_flag("--dry-run", flags->dry_run, "print the faults and do nothing");
  verb->add_option("-o,--output", flags->output, "json: one JSON object on stdout")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  verb->footer(
      "The coordinator and the agents must have been started with --allow-chaos. Ends with 1 when\n"
      "an invariant was violated.\n\n"
      "  moesaic chaos -f chaos.yaml --seed 7");
  verb->callback([flags, &context] { RunChaos(*flags, context); });
}

}  // namespace moesaic
