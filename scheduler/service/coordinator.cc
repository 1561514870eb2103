#include "scheduler/service/coordinator.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/log.h"

namespace moesaic {
namespace {

// Of a job, kept for watchers that come late; older ones are dropped.
constexpr size_t kKeptEvents = 10000;

absl::Status Stopping() { return absl::UnavailableError("the coordinator is stopping"); }

std::vector<JobRecord> Abandoned(std::vector<JobRecord> records) {
  for (JobRecord& record : records) {
    JobStatus* status = record.mutable_status();
    if (HasEnded(status->state())) continue;
    status->set_state(FAILED);
    status->set_exit_code(kJobFailed);
    status->set_reason("the run that it belonged to was killed");
  }
  return records;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CoordinatorCore>> CoordinatorCore::Open(CoordinatorOptions options) {
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(options.store_path);
  if (!store.ok()) return store.status();
  absl::StatusOr<std::vector<JobRecord>> records = (*store)->ReadAll();
  if (!records.ok()) return records.status();
  if (options.abandon_live_jobs) *records = Abandoned(*std::move(records));
  return std::unique_ptr<CoordinatorCore>(
      new CoordinatorCore(std::move(options), *std::move(store), *records));
}

CoordinatorCore::CoordinatorCore(CoordinatorOptions options, std::unique_ptr<Store> store,
                                 const std::vector<JobRecord>& records)
    : options_(std::move(options)),
      keeper_(options_.files, options_.clock, options_.binary),
      state_(options_.cluster, records, options_.clock->Now()),
      store_(std::move(store)) {
  background_thread_ = std::thread([this] { RunBackground(); });
  if (options_.tick > absl::ZeroDuration()) tick_thread_ = std::thread([this] { RunTicks(); });
}

CoordinatorCore::~CoordinatorCore() {
  Shutdown();
  background_thread_.join();
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
  const absl::Status written = store_->Write(outcome.records);
  if (!written.ok()) {
    // The state is ahead of what is durable; a new coordinator starts from the store.
    broken_ = absl::UnavailableError(written.message());
    LogError("{}", std::string(written.message()));
    return broken_;
  }
  return outcome;
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
    std::erase_if(ready_calls_, [&](const ReadyCall& call) {
      if (call.job != ready->job || call.generation != ready->generation) return false;
      deliveries->push_back([answer = call.answer, status = ready->status] { answer(status); });
      return true;
    });
  } else if (const auto* publish = std::get_if<PublishEvent>(&action)) {
    Publish(*publish, deliveries);
  } else {
    std::visit(
        [&](const auto& work) {
          if constexpr (std::is_constructible_v<BackgroundWork, decltype(work)>) {
            background_.push_back(work);
          }
        },
        action);
    changed_.NotifyAll();
  }
}

void CoordinatorCore::Publish(const PublishEvent& action, Deliveries* deliveries) {
  std::deque<JobEvent>& kept = events_[action.job];
  kept.push_back(action.event);
  if (kept.size() > kKeptEvents) kept.pop_front();
  const bool last = action.event.has_status() && HasEnded(action.event.status().state());
  std::erase_if(watchers_, [&](const Watcher& watcher) {
    if (watcher.job != action.job) return false;
    watcher.outbox->Push(action.event);
    if (last) watcher.outbox->Close(absl::OkStatus());
    deliveries->push_back([outbox = watcher.outbox] { outbox->Pump(); });
    return last;
  });
}

void CoordinatorCore::Deliver(const Deliveries& deliveries) {
  for (const auto& deliver : deliveries) deliver();
}

void CoordinatorCore::CloseAll(const absl::Status& status, Deliveries* deliveries) {
  const auto close = [&](const auto& outbox) {
    outbox->Close(status);
    deliveries->push_back([outbox] { outbox->Pump(); });
  };
  for (const auto& [name, outbox] : agents_) close(outbox);
  for (const ProgressStream& stream : progress_) close(stream.outbox);
  for (const Watcher& watcher : watchers_) close(watcher.outbox);
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

absl::Status CoordinatorCore::Watch(const WatchJobRequest& request,
                                    std::shared_ptr<Outbox<JobEvent>> outbox) {
  {
    MutexLock lock(&mutex_);
    if (!broken_.ok()) return broken_;
    if (stopping_) return Stopping();
    const JobStatus* status = state_.status(request.job());
    if (status == nullptr) {
      return absl::NotFoundError(fmt::format("there is no job {}", request.job()));
    }
    for (const JobEvent& event : events_[request.job()]) {
      if (event.sequence() > request.after_sequence()) outbox->Push(event);
    }
    if (HasEnded(status->state())) {
      outbox->Close(absl::OkStatus());
    } else {
      watchers_.push_back({request.job(), outbox});
    }
  }
  outbox->Pump();
  return absl::OkStatus();
}

void CoordinatorCore::Unwatch(const Outbox<JobEvent>* outbox) {
  MutexLock lock(&mutex_);
  std::erase_if(watchers_, [&](const Watcher& w) { return w.outbox.get() == outbox; });
}

absl::StatusOr<JobStatus> CoordinatorCore::GetJob(const std::string& job) const {
  MutexLock lock(&mutex_);
  const JobStatus* status = state_.status(job);
  if (status == nullptr) return absl::NotFoundError(fmt::format("there is no job {}", job));
  return *status;
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

// ---- Threads.
// ------------------------------------------------------------------------------------

void CoordinatorCore::RunBackground() {
  while (true) {
    std::optional<BackgroundWork> work;
    {
      MutexLock lock(&mutex_);
      while (background_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (stopping_) return;
      work = std::move(background_.front());
      background_.pop_front();
    }
    std::optional<Event> answer;
    if (const auto* choose = std::get_if<ChooseRestore>(&*work)) {
      answer = keeper_.Choose(*choose);
    } else if (const auto* stage = std::get_if<StageCheckpoint>(&*work)) {
      answer = keeper_.Stage(*stage);
    } else if (const auto* commit = std::get_if<CommitCheckpoint>(&*work)) {
      answer = keeper_.Commit(*commit);
    } else {
      keeper_.Discard(std::get<DiscardStaging>(*work));
    }
    if (answer) Handle(*answer).IgnoreError();  // stale when the job has moved on meanwhile
  }
}

void CoordinatorCore::RunTicks() {
  while (true) {
    Deliveries deliveries;
    {
      MutexLock lock(&mutex_);
      if (!stopping_) changed_.WaitFor(&mutex_, options_.tick);
      if (stopping_) return;
      HandleLocked(Tick{}, &deliveries).IgnoreError();
    }
    Deliver(deliveries);
  }
}

}  // namespace moesaic
