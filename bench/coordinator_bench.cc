// What the coordinator bears: progress reports of 10,000 workers and lease renewals of 1,000 agents, all
// simulated in this process without a network; and how long a restart takes with 100,000 events.
//
//   moesaic-coordinator-bench [FOLDER]        (default: a temporary one; its disk is what is measured)
#include <fmt/format.h>
#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <thread>
#include <vector>

#include "proto/job_spec.h"
#include "scheduler/service/coordinator.h"

namespace moesaic {
namespace {

constexpr uint32_t kAgents = 1000;
constexpr uint32_t kSlots = 10;
constexpr uint32_t kRounds = 20;
constexpr uint64_t kEvents = 100000;

class Seconds {
 public:
  double Passed() const { return absl::ToDoubleSeconds(absl::Now() - start_); }

 private:
  const absl::Time start_ = absl::Now();
};

template <typename Message>
class Inbox : public Outbox<Message> {
 public:
  void Push(Message message) override {
    MutexLock lock(&mutex_);
    newest_ = std::move(message);
    ++count_;
  }
  void Close(absl::Status) override {}
  void Pump() override {}
  std::pair<uint64_t, Message> newest() {
    MutexLock lock(&mutex_);
    return {count_, newest_};
  }

 private:
  Mutex mutex_;
  Message newest_ ABSL_GUARDED_BY(mutex_);
  uint64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
};

void Must(const absl::Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "{}\n", std::string(status.message()));
  exit(1);
}

std::unique_ptr<CoordinatorCore> OpenCore(const std::string& dir) {
  CoordinatorOptions options;
  options.cluster.join_wait = absl::ZeroDuration();
  options.cluster.lease_ttl = absl::Hours(1);
  options.store_path = dir + "/coordinator.sqlite";
  options.tick = absl::ZeroDuration();
  auto core = CoordinatorCore::Open(std::move(options));
  Must(core.status());
  return *std::move(core);
}

JobSpec BigJob(const std::string& dir) {
  JobSpec spec;
  spec.set_name("big");
  ModelSpec* model = spec.mutable_model();
  model->set_layers(2);
  model->set_hidden(16);
  model->set_heads(2);
  model->set_sequence(8);
  model->set_vocabulary(64);
  model->mutable_moe()->set_experts(8);
  model->mutable_moe()->set_active(2);
  model->mutable_moe()->set_expert_width(8);
  spec.mutable_data()->add_train()->set_path("corpus");
  spec.mutable_train()->set_steps(1000000);
  spec.mutable_train()->set_global_batch(kAgents * kSlots);
  spec.mutable_train()->set_micro_batch(1);
  spec.mutable_elastic()->mutable_nodes()->set_min(kAgents);
  spec.mutable_elastic()->mutable_nodes()->set_max(kAgents);
  spec.mutable_elastic()->set_slots_per_node(kSlots);
  spec.mutable_run()->set_dir(dir + "/run");
  spec.mutable_checkpoint()->set_dir(dir + "/run/checkpoints");
  ApplyDefaults(&spec);
  return spec;
}

std::string AgentName(uint32_t i) { return fmt::format("n{:04}", i); }

// Joins the agents, submits the job and plays its start; returns the head's command.
StartGeneration StartJob(CoordinatorCore* core, const JobSpec& spec) {
  std::vector<std::shared_ptr<Inbox<AgentCommand>>> inboxes;
  for (uint32_t i = 0; i < kAgents; ++i) {
    AgentJoined join{AgentName(i), "i", {}};
    join.registration.set_slots(kSlots);
    join.registration.set_cores(kSlots);
    join.registration.set_host(AgentName(i));
    join.registration.set_arena_dir("/dev/shm/bench");
    inboxes.push_back(std::make_shared<Inbox<AgentCommand>>());
    Must(core->Join(join, inboxes.back()));
  }
  Must(core->Handle(JobSubmitted{spec, "auto"}));
  while (!inboxes.front()->newest().second.has_start()) std::this_thread::yield();
  return inboxes.front()->newest().second.start();
}

WorkerIdentity Worker(const StartGeneration& start, uint32_t rank) {
  WorkerIdentity worker;
  worker.set_job(start.job());
  worker.set_generation(start.generation());
  worker.set_token(start.token());
  worker.set_rank(rank);
  worker.set_incarnation("w");
  return worker;
}

void MeasureLoad(const std::string& dir) {
  const std::unique_ptr<CoordinatorCore> core = OpenCore(dir);
  const Seconds starting;
  const StartGeneration start = StartJob(core.get(), BigJob(dir));
  fmt::print("{} agents joined, {} ranks planned and started: {:.2f} s\n", kAgents, start.ranks(),
             starting.Passed());
  const Seconds meeting;
  for (uint32_t rank = 0; rank < start.ranks(); ++rank) {
    ReadyRequest ready;
    *ready.mutable_worker() = Worker(start, rank);
    core->Ready(ready, [](absl::Status status) { Must(status); });
  }
  fmt::print("{} ranks ready: {:.2f} s\n", start.ranks(), meeting.Passed());

  std::vector<StepReport> reports(start.ranks());
  for (uint32_t rank = 0; rank < start.ranks(); ++rank) {
    *reports[rank].mutable_worker() = Worker(start, rank);
    reports[rank].set_phase("step");
  }
  const Seconds reporting;
  for (uint32_t step = 1; step <= kRounds; ++step) {
    for (StepReport& report : reports) {
      report.set_step(step);
      if (report.worker().rank() == 0) report.mutable_metrics()->set_step(step);
      Must(core->Handle(StepReported{report}));
    }
  }
  const double reported = reporting.Passed();
  fmt::print("progress: {:.0f} reports/s ({} ranks, {} steps)\n",
             start.ranks() * kRounds / reported, start.ranks(), kRounds);

  const Seconds renewing;
  for (uint32_t round = 0; round < kRounds; ++round) {
    for (uint32_t i = 0; i < kAgents; ++i) Must(core->Handle(AgentRenewed{AgentName(i), "i"}));
  }
  fmt::print("leases: {:.0f} renewals/s ({} agents)\n", kAgents * kRounds / renewing.Passed(),
             kAgents);
  const Seconds ticking;
  Must(core->Handle(Tick{}));
  fmt::print("one look at the health of all: {:.1f} ms\n", ticking.Passed() * 1e3);
}

void MeasureRestart(const std::string& dir) {
  {
    const std::unique_ptr<CoordinatorCore> core = OpenCore(dir);
    JobSpec spec = BigJob(dir);
    spec.set_name("eventful");
    Must(core->Handle(JobSubmitted{spec, "auto"}));
    const Seconds writing;
    for (uint64_t i = core->GetJob("eventful")->newest_event(); i < kEvents; ++i) {
      core->Note("eventful", fmt::format("note {} of what happened to a job with many events", i));
    }
    fmt::print("events: {:.0f}/s written\n", kEvents / writing.Passed());
  }
  const Seconds restarting;
  const std::unique_ptr<CoordinatorCore> core = OpenCore(dir);
  const double opened = restarting.Passed();
  uint64_t after = 0;
  uint64_t read = 0;
  while (true) {
    const absl::StatusOr<EventPage> page = core->ReadEvents("eventful", after, 256);
    Must(page.status());
    if (page->events.empty()) break;
    read += page->events.size();
    after = page->events.back().sequence();
  }
  fmt::print("restart with {} events: {:.3f} s; replay of {}: {:.3f} s\n", kEvents, opened, read,
             restarting.Passed() - opened);
}

int Main(int argc, char** argv) {
  std::string pattern = (argc > 1 ? std::string(argv[1]) : "/tmp") + "/moesaic-bench-XXXXXX";
  const char* dir = mkdtemp(pattern.data());
  if (dir == nullptr) Must(absl::NotFoundError("cannot make " + pattern));
  std::filesystem::create_directory(pattern + "/load");
  std::filesystem::create_directory(pattern + "/restart");
  MeasureLoad(pattern + "/load");
  MeasureRestart(pattern + "/restart");
  std::filesystem::remove_all(pattern);
  return 0;
}

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) { return moesaic::Main(argc, argv); }
