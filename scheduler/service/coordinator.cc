#include "scheduler/service/coordinator.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "base/log.h"
#include "scheduler/client/random_token.h"

namespace moesaic {
namespace {

// Before another try to remove a staging folder that somebody still wrote into.
constexpr absl::Duration kDiscardDelay = absl::Milliseconds(200);
// A tick that is later than this is no matter of scheduling.
constexpr absl::Duration kStall = absl::Seconds(1);

absl::Status Stopping() { return absl::UnavailableError("the coordinator is stopping"); }

absl::Status NoSuchJob(const std::string& job) {
  return absl::NotFoundError(fmt::format("there is no job {}", job));
}

std::vector<JobRecord> Abandoned(std::vector<JobRecord> records) {
  for (JobRecord& record : records) {
    JobStatus* status = record.mutable_status();
    if (HasEnded(status->state())) continue;
    status->set_state(FAILED);
    status->set_exit_code(kExitJobFailed);
    status->set_reason("the run that it belonged to was killed");
  }
  return records;
}

void LogEvent(const std::string& job, const JobEvent& event) {
  if (event.has_status()) {
    LogInfo("job {} is {}: {}", job, JobState_Name(event.status().state()),
            event.status().reason());
  } else if (!event.note().empty()) {
    LogInfo("job {}: {}", job, event.note());
  }
}

}  // namespace

absl::StatusOr<CoordinatorCore::Memory> CoordinatorCore::ReadMemory(Store* store) {
  absl::StatusOr<std::vector<JobRecord>> jobs = store->ReadJobs();
  if (!jobs.ok()) return jobs.status();
  absl::StatusOr<std::vector<NodeRecord>> nodes = store->ReadNodes();
  if (!nodes.ok()) return nodes.status();
  absl::StatusOr<std::map<std::string, uint64_t>> sequences = store->LastSequences();
  if (!sequences.ok()) return sequences.status();
  return Memory{*std::move(jobs), *std::move(nodes), *std::move(sequences)};
}

absl::StatusOr<std::unique_ptr<CoordinatorCore>> CoordinatorCore::Open(CoordinatorOptions options) {
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(options.store_path);
  if (!store.ok()) return store.status();
  absl::StatusOr<Memory> memory = ReadMemory(store->get());
  if (!memory.ok()) return memory.status();
  if (!options.cluster.draw_token) options.cluster.draw_token = RandomToken;
  if (options.abandon_live_jobs) memory->jobs = Abandoned(std::move(memory->jobs));
  std::unique_ptr<CoordinatorCore> core(
      new CoordinatorCore(std::move(options), *std::move(store), *memory));
  if (const absl::Status opened = core->OpenArchive(); !opened.ok()) return opened;
  core->StartThreads();
  return core;
}

CoordinatorCore::CoordinatorCore(CoordinatorOptions options, std::unique_ptr<Store> store,
                                 const Memory& memory)
    : options_(std::move(options)),
      state_(options_.cluster, memory.jobs, options_.clock->Now(), memory.nodes),
      store_(std::move(store)),
      last_sequences_(memory.last_sequences) {}

absl::Status CoordinatorCore::OpenArchive() {
  ArchiveOptions archive;
  archive.catalog_path =
      std::filesystem::path(options_.store_path).replace_filename("checkpoints.sqlite").string();
  archive.files = options_.files;
  archive.clock = options_.clock;
  archive.verify = options_.verify_checkpoints;
  archive.note = [this](const std::string& job, const std::string& text) { Note(job, text); };
  absl::StatusOr<std::unique_ptr<CheckpointArchive>> opened =
      CheckpointArchive::Open(std::move(archive));
  if (!opened.ok()) return opened.status();
  archive_ = *std::move(opened);
  keeper_ = std::make_unique<CheckpointKeeper>(archive_.get(), options_.clock, options_.binary);
  return absl::OkStatus();
}

void CoordinatorCore::StartThreads() {
  background_thread_ = std::thread([this] { RunBackground(); });
  if (options_.tick > absl::ZeroDuration()) tick_thread_ = std::thread([this] { RunTicks(); });
}

CoordinatorCore::~CoordinatorCore() {
  Shutdown();
  if (background_thread_.joinable()) background_thread_.join();
  if (tick_thread_.joinable()) tick_thread_.join();
}

void CoordinatorCore::Shutdown() {
  Deliveries deliveries;
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    CloseAll(Stopping(), &deliveries);
    changed_.NotifyAll();
  }
  Deliver(deliveries);
}

// ---- Events.
// -------------------------------------------------------------------------------------

absl::Status CoordinatorCore::Handle(const Event& event) {
  Deliveries deliveries;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    status = HandleLocked(event, &deliveries);
  }
  Deliver(deliveries);
  return status;
}

absl::Status CoordinatorCore::HandleLocked(const Event& event, Deliveries* deliveries) {
  const absl::StatusOr<Outcome> outcome = Decide(event);
  if (!outcome.ok()) {
    CloseAll(outcome.status(), deliveries);
    return outcome.status();
  }
  DoAll(*outcome, deliveries);
  return outcome->status;
}

absl::StatusOr<Outcome> CoordinatorCore::Decide(const Event& event) {
  if (!broken_.ok()) return broken_;
  if (stopping_) return Stopping();
  Outcome outcome = state_.Handle(event, options_.clock->Now());
  StoreChanges changes{std::move(outcome.records), std::move(outcome.node_records), {}};
  for (Action& action : outcome.actions) {
    auto* publish = std::get_if<PublishEvent>(&action);
    if (publish == nullptr) continue;
    publish->event.set_sequence(++last_sequences_[publish->job]);
    changes.events.push_back({publish->job, publish->event});
  }
  if (const absl::Status written = Write(changes); !written.ok()) return written;
  return outcome;
}

absl::Status CoordinatorCore::Write(const StoreChanges& changes) {
  const absl::Status written = store_->Write(changes);
  if (written.ok()) return written;
  // The state is ahead of what is durable; a new coordinator starts from the store.
  broken_ = absl::UnavailableError(written.message());
  LogError("{}", std::string(written.message()));
  return broken_;
}

void CoordinatorCore::DoAll(const Outcome& outcome, Deliveries* deliveries) {
  for (const Action& action : outcome.actions) Do(action, deliveries);
}

void CoordinatorCore::Do(const Action& action, Deliveries* deliveries) {
  if (const auto* send = std::get_if<SendToAgent>(&action)) {
    const auto agent = agents_.find(send->agent);
    if (agent == agents_.end()) return;
    agent->second->Push(send->command);
    deliveries->push_back([outbox = agent->second] { outbox->Pump(); });
  } else if (const auto* control = std::get_if<PushControl>(&action)) {
    for (const ProgressStream& stream : progress_) {
      if (stream.job != control->job || stream.generation != control->control.generation())
        continue;
      stream.outbox->Push(control->control);
      deliveries->push_back([outbox = stream.outbox] { outbox->Pump(); });
    }
  } else if (const auto* ready = std::get_if<AnswerReady>(&action)) {
    const auto waits = [&](const ReadyCall& call) {
      return call.job == ready->job && call.generation == ready->generation;
    };
    for (const ReadyCall& call : ready_calls_) {
      if (!waits(call)) continue;
      deliveries->push_back([answer = call.answer, status = ready->status] { answer(status); });
    }
    std::erase_if(ready_calls_, waits);
  } else if (const auto* publish = std::get_if<PublishEvent>(&action)) {
    if (options_.log_events) LogEvent(publish->job, publish->event);
    Wake(publish->job, deliveries);
  } else if (const auto* given_up = std::get_if<TellGivenUp>(&action)) {
    deliveries->push_back([this, told = *given_up] {
      archive_->GivenUp(told.job, told.step, told.why);
    });
  } else if (std::optional<BackgroundWork> work = InBackground(action)) {
    background_.push_back(*std::move(work));
    changed_.NotifyAll();
  }
}

std::optional<CoordinatorCore::BackgroundWork> CoordinatorCore::InBackground(
    const Action& action) {
  return std::visit(
      [](const auto& work) -> std::optional<BackgroundWork> {
        if constexpr (std::is_constructible_v<BackgroundWork, decltype(work)>) {
          return BackgroundWork(work);
        } else {
          return std::nullopt;
        }
      },
      action);
}

void CoordinatorCore::Wake(const std::string& job, Deliveries* deliveries) {
  for (const Watcher& watcher : watchers_) {
    if (watcher.job != job) continue;
    deliveries->push_back([listener = watcher.listener] { listener->Wake(); });
  }
}

void CoordinatorCore::Deliver(const Deliveries& deliveries) {
  for (const auto& deliver : deliveries) deliver();
}

void CoordinatorCore::CloseAll(const absl::Status& status, Deliveries* deliveries) {
  for (const auto& [name, outbox] : agents_) {
    outbox->Close(status);
    deliveries->push_back([outbox = outbox] { outbox->Pump(); });
  }
  for (const ProgressStream& stream : progress_) {
    stream.outbox->Close(status);
    deliveries->push_back([outbox = stream.outbox] { outbox->Pump(); });
  }
  for (const Watcher& watcher : watchers_) {
    deliveries->push_back([listener = watcher.listener] { listener->Wake(); });
  }
  for (const ReadyCall& call : ready_calls_) {
    deliveries->push_back([answer = call.answer, status] { answer(status); });
  }
  agents_.clear();
  progress_.clear();
  watchers_.clear();
  ready_calls_.clear();
}

// ---- Peers.
// --------------------------------------------------------------------------------------

absl::Status CoordinatorCore::Join(const AgentJoined& event,
                                   std::shared_ptr<Outbox<AgentCommand>> outbox) {
  Deliveries deliveries;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    const absl::StatusOr<Outcome> outcome = Decide(event);
    status = outcome.ok() ? outcome->status : outcome.status();
    if (status.ok()) {
      std::shared_ptr<Outbox<AgentCommand>>& slot = agents_[event.agent];
      if (slot != nullptr) {
        slot->Close(absl::FailedPreconditionError("stale stream: the agent registered again"));
        deliveries.push_back([old = slot] { old->Pump(); });
      }
      slot = std::move(outbox);
      DoAll(*outcome, &deliveries);
    }
  }
  Deliver(deliveries);
  return status;
}

void CoordinatorCore::Leave(const AgentLost& event, const Outbox<AgentCommand>* outbox) {
  Deliveries deliveries;
  {
    MutexLock lock(&mutex_);
    const auto found = agents_.find(event.agent);
    if (found == agents_.end() || found->second.get() != outbox) return;
    agents_.erase(found);
    HandleLocked(event, &deliveries).IgnoreError();  // stale when its lease had ended before
  }
  Deliver(deliveries);
}

void CoordinatorCore::Ready(const ReadyRequest& request, std::function<void(absl::Status)> answer) {
  Deliveries deliveries;
  {
    MutexLock lock(&mutex_);
    const absl::StatusOr<Outcome> outcome = Decide(RankReady{request});
    const absl::Status status = outcome.ok() ? outcome->status : outcome.status();
    if (status.ok()) {
      ready_calls_.push_back(
          {request.worker().job(), request.worker().generation(), std::move(answer)});
      DoAll(*outcome, &deliveries);
    } else {
      deliveries.push_back([answer = std::move(answer), status] { answer(status); });
    }
  }
  Deliver(deliveries);
}

absl::Status CoordinatorCore::OpenProgress(const StepReport& first,
                                           std::shared_ptr<Outbox<Control>> outbox) {
  Deliveries deliveries;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    status = HandleLocked(StepReported{first}, &deliveries);
    if (status.ok()) {
      const WorkerIdentity& worker = first.worker();
      outbox->Push(*state_.control(worker.job()));
      deliveries.push_back([outbox] { outbox->Pump(); });
      progress_.push_back({worker.job(), worker.generation(), std::move(outbox)});
    }
  }
  Deliver(deliveries);
  return status;
}

void CoordinatorCore::CloseProgress(const Outbox<Control>* outbox) {
  MutexLock lock(&mutex_);
  std::erase_if(progress_, [&](const ProgressStream& s) { return s.outbox.get() == outbox; });
}

absl::Status CoordinatorCore::Watch(const std::string& job,
                                    std::shared_ptr<EventListener> listener) {
  MutexLock lock(&mutex_);
  if (!broken_.ok()) return broken_;
  if (stopping_) return Stopping();
  if (state_.status(job) == nullptr) return NoSuchJob(job);
  watchers_.push_back({job, std::move(listener)});
  return absl::OkStatus();
}

void CoordinatorCore::Unwatch(const EventListener* listener) {
  MutexLock lock(&mutex_);
  std::erase_if(watchers_, [&](const Watcher& w) { return w.listener.get() == listener; });
}

absl::StatusOr<EventPage> CoordinatorCore::ReadEvents(const std::string& job, uint64_t after,
                                                      uint32_t limit) {
  MutexLock lock(&mutex_);
  if (!broken_.ok()) return broken_;
  if (stopping_) return Stopping();
  const JobStatus* status = state_.status(job);
  if (status == nullptr) return NoSuchJob(job);
  const uint64_t newest = last_sequences_[job];
  if (after > newest) after = 0;
  EventPage page;
  if (after < newest) {
    absl::StatusOr<std::vector<JobEvent>> events = store_->ReadEvents(job, after, limit);
    if (!events.ok()) return events.status();
    page.events = *std::move(events);
  }
  const uint64_t reached = page.events.empty() ? after : page.events.back().sequence();
  page.last = HasEnded(status->state()) && reached == newest;
  return page;
}

void CoordinatorCore::Note(const std::string& job, const std::string& text) {
  Deliveries deliveries;
  {
    MutexLock lock(&mutex_);
    if (!broken_.ok() || stopping_ || state_.status(job) == nullptr) return;
    JobEvent event;
    event.set_sequence(++last_sequences_[job]);
    event.set_unix_ns(absl::ToUnixNanos(options_.clock->Now()));
    event.set_note(text);
    if (Write({{}, {}, {{job, std::move(event)}}}).ok()) Wake(job, &deliveries);
  }
  Deliver(deliveries);
}

absl::StatusOr<JobStatus> CoordinatorCore::GetJob(const std::string& job) const {
  MutexLock lock(&mutex_);
  const JobStatus* status = state_.status(job);
  if (status == nullptr) return NoSuchJob(job);
  return WithEvents(*status);
}

JobStatus CoordinatorCore::WithEvents(const JobStatus& status) const {
  JobStatus answer = status;
  const auto last = last_sequences_.find(status.job());
  answer.set_newest_event(last == last_sequences_.end() ? 0 : last->second);
  return answer;
}

std::vector<JobStatus> CoordinatorCore::ListJobs() const {
  std::vector<JobStatus> jobs;
  {
    MutexLock lock(&mutex_);
    for (const std::string& job : state_.jobs()) jobs.push_back(WithEvents(*state_.status(job)));
  }
  std::stable_sort(jobs.begin(), jobs.end(), [](const JobStatus& a, const JobStatus& b) {
    return a.submitted_unix_ns() < b.submitted_unix_ns();
  });
  return jobs;
}

size_t CoordinatorCore::CountLiveJobs() const {
  MutexLock lock(&mutex_);
  size_t live = 0;
  for (const std::string& job : state_.jobs()) live += !HasEnded(state_.status(job)->state());
  return live;
}

std::vector<NodeStatus> CoordinatorCore::ListNodes() const {
  MutexLock lock(&mutex_);
  return state_.nodes(options_.clock->Now());
}

absl::Status CoordinatorCore::CheckGeneration(const WorkerIdentity& writer) const {
  MutexLock lock(&mutex_);
  return state_.CheckGeneration(writer);
}

absl::StatusOr<JobSpec> CoordinatorCore::GetSpec(const std::string& job) const {
  MutexLock lock(&mutex_);
  const JobSpec* spec = state_.spec(job);
  if (spec == nullptr) return NoSuchJob(job);
  return *spec;
}

absl::StatusOr<RankTable> CoordinatorCore::GetRankTable(const WorkerIdentity& worker) {
  Deliveries deliveries;
  MutexLock lock(&mutex_);
  const absl::StatusOr<Outcome> outcome = Decide(RankTableAsked{worker});
  if (!outcome.ok()) return outcome.status();
  if (!outcome->status.ok()) return outcome->status;
  DoAll(*outcome, &deliveries);  // asking makes no deliveries, but may let another job plan
  return *state_.rank_table(worker.job());
}

absl::StatusOr<RankTable> CoordinatorCore::LiveRankTable(const std::string& job) const {
  MutexLock lock(&mutex_);
  const RankTable* table = state_.rank_table(job);
  if (table == nullptr) return absl::NotFoundError(fmt::format("job {} does not run", job));
  return *table;
}

absl::Status CoordinatorCore::Command(const std::string& agent, AgentCommand command) {
  std::shared_ptr<Outbox<AgentCommand>> outbox;
  {
    MutexLock lock(&mutex_);
    const auto found = agents_.find(agent);
    if (found == agents_.end()) {
      return absl::NotFoundError(fmt::format("there is no agent {}", agent));
    }
    outbox = found->second;
    outbox->Push(std::move(command));
  }
  outbox->Pump();
  return absl::OkStatus();
}

// ---- Threads.
// ------------------------------------------------------------------------------------

void CoordinatorCore::RunBackground() {
  while (true) {
    std::optional<BackgroundWork> work;
    {
      MutexLock lock(&mutex_);
      while (background_.empty() && !stopping_ && !keeper_->has_rest()) changed_.Wait(&mutex_);
      if (background_.empty() && !stopping_) changed_.WaitFor(&mutex_, kDiscardDelay);
      if (stopping_) return;
      if (!background_.empty()) {
        work = std::move(background_.front());
        background_.pop_front();
      }
    }
    if (!work) {
      keeper_->DiscardRest();
      continue;
    }
    std::optional<Event> answer;
    if (const auto* choose = std::get_if<ChooseRestore>(&*work)) {
      answer = keeper_->Choose(*choose);
    } else if (const auto* stage = std::get_if<StageCheckpoint>(&*work)) {
      answer = keeper_->Stage(*stage);
    } else if (const auto* commit = std::get_if<CommitCheckpoint>(&*work)) {
      answer = keeper_->Commit(*commit);
    } else {
      keeper_->Discard(std::get<DiscardStaging>(*work));
    }
    if (answer) Handle(*answer).IgnoreError();  // stale when the job has moved on meanwhile
  }
}

void CoordinatorCore::RunTicks() {
  absl::Time last = options_.clock->Now();
  while (true) {
    Deliveries deliveries;
    {
      MutexLock lock(&mutex_);
      if (!stopping_) changed_.WaitFor(&mutex_, options_.tick);
      if (stopping_) return;
      TickLocked(&last, &deliveries);
    }
    Deliver(deliveries);
  }
}

// A tick that is late says that nothing was taken in since it was due.
void CoordinatorCore::TickLocked(absl::Time* last, Deliveries* deliveries) {
  const absl::Time now = options_.clock->Now();
  const absl::Duration late = now - *last - options_.tick;
  *last = now;
  if (late >= kStall) {
    LogWarning("took nothing in for {}: leases are extended by as much",
               absl::FormatDuration(late));
    HandleLocked(Stalled{late}, deliveries).IgnoreError();
  }
  HandleLocked(Tick{}, deliveries).IgnoreError();
}

}  // namespace moesaic
