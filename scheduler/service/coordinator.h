// CoordinatorCore: the cluster state with a mutex, a durable store, a clock and someone to talk to.
// An event goes in; its records are made durable; only then its actions leave. It decides nothing
// itself (scheduler/state does) and speaks no gRPC (server.cc does).
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "scheduler/service/checkpoint_archive.h"
#include "scheduler/service/checkpoint_keeper.h"
#include "scheduler/service/store.h"
#include "scheduler/state/cluster_state.h"

namespace moesaic {

// Where messages to one peer go. Push and Close only note what is to be sent, so that they may be
// called under a lock; Pump sends, and is called without one.
template <typename Message>
class Outbox {
 public:
  virtual ~Outbox() = default;
  virtual void Push(Message message) = 0;
  virtual void Close(absl::Status status) = 0;
  virtual void Pump() = 0;
};

// Somebody who follows the events of a job.
class EventListener {
 public:
  virtual ~EventListener() = default;
  // There may be new events to read. Called without a lock.
  virtual void Wake() = 0;
};

struct EventPage {
  std::vector<JobEvent> events;
  bool last = false;  // the job has ended, and these are its last events
};

struct CoordinatorOptions {
  ClusterOptions cluster;
  std::string store_path;
  // Jobs that a former coordinator left alive are marked as failed instead of going on: for one
  // that lives inside the command that started the job.
  bool abandon_live_jobs = false;
  // How often time is noticed; zero: only when Handle(Tick) is called.
  absl::Duration tick = absl::Milliseconds(100);
  std::string binary = "moesaic";
  // Whether each new checkpoint is read again in the background, and set aside if it is damaged.
  bool verify_checkpoints = true;
  // Whether states and notes of jobs go to the log, too.
  bool log_events = false;
  const Clock* clock = &Clock::System();
  FileSystem* files = &FileSystem::System();
};

// Thread-safe.
class CoordinatorCore {
 public:
  static absl::StatusOr<std::unique_ptr<CoordinatorCore>> Open(CoordinatorOptions options);
  // Ends the streams and waits for disk work in progress.
  ~CoordinatorCore();

  // What the sender is to be told. Unavailable after the store has failed: then nothing may be
  // promised any more.
  absl::Status Handle(const Event& event);

  absl::Status Join(const AgentJoined& event, std::shared_ptr<Outbox<AgentCommand>> outbox);
  // The stream of that outbox ended. Nothing happens when the agent has registered on another
  // since.
  void Leave(const AgentLost& event, const Outbox<AgentCommand>* outbox);
  // `answer` is called once, without a lock.
  void Ready(const ReadyRequest& request, std::function<void(absl::Status)> answer);
  // The first report of a stream: says who it is, and gets the control word at once.
  absl::Status OpenProgress(const StepReport& first, std::shared_ptr<Outbox<Control>> outbox);
  void CloseProgress(const Outbox<Control>* outbox);

  // Events of a job are numbered 1, 2, ... for ever, also over restarts and over jobs of the same
  // name; the newest kKeptEvents can be read. Listeners are woken until they leave or the core is
  // shut down (then ReadEvents says Unavailable).
  absl::Status Watch(const std::string& job, std::shared_ptr<EventListener> listener);
  void Unwatch(const EventListener* listener);
  // Those after a number, at most `limit`, oldest first. A number that was never given out is one
  // of another history: the answer starts from the oldest event.
  absl::StatusOr<EventPage> ReadEvents(const std::string& job, uint64_t after, uint32_t limit);
  // An event that changes nothing but is to be known.
  void Note(const std::string& job, const std::string& text);

  absl::StatusOr<JobStatus> GetJob(const std::string& job) const;
  // By time of submission.
  std::vector<JobStatus> ListJobs() const;
  size_t CountLiveJobs() const;  // that have not ended
  std::vector<NodeStatus> ListNodes() const;
  absl::StatusOr<JobSpec> GetSpec(const std::string& job) const;
  // Whether `writer` is of the job's current generation and has its token; its rank and incarnation
  // are not looked at. FailedPrecondition "stale generation ...", PermissionDenied, NotFound.
  absl::Status CheckGeneration(const WorkerIdentity& writer) const;
  // Its calls wait for the disk.
  CheckpointArchive& archive() { return *archive_; }
  const std::string& binary() const { return options_.binary; }
  const Clock& clock() const { return *options_.clock; }
  absl::StatusOr<RankTable> GetRankTable(const WorkerIdentity& worker);
  // Of the generation that is starting or running; NotFound when there is none.
  absl::StatusOr<RankTable> LiveRankTable(const std::string& job) const;
  // NotFound when no agent of that name is connected.
  absl::Status Command(const std::string& agent, AgentCommand command);

  // Ends all streams and refuses what comes; for a server that wants to stop.
  void Shutdown();

 private:
  using BackgroundWork =
      std::variant<ChooseRestore, StageCheckpoint, CommitCheckpoint, DiscardStaging>;
  struct ReadyCall {
    std::string job;
    uint64_t generation = 0;
    std::function<void(absl::Status)> answer;
  };
  struct ProgressStream {
    std::string job;
    uint64_t generation = 0;
    std::shared_ptr<Outbox<Control>> outbox;
  };
  struct Watcher {
    std::string job;
    std::shared_ptr<EventListener> listener;
  };
  // What a former life left in the store.
  struct Memory {
    std::vector<JobRecord> jobs;
    std::vector<NodeRecord> nodes;
    std::map<std::string, uint64_t> last_sequences;
  };
  // Nothing for an action that is done at once.
  static std::optional<BackgroundWork> InBackground(const Action& action);
  // Sends what was noted under the lock.
  using Deliveries = std::vector<std::function<void()>>;

  CoordinatorCore(CoordinatorOptions options, std::unique_ptr<Store> store, const Memory& memory);
  static absl::StatusOr<Memory> ReadMemory(Store* store);
  absl::Status OpenArchive();
  void StartThreads();

  absl::Status HandleLocked(const Event& event, Deliveries* deliveries)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // After the first step of HandleLocked: records are durable.
  void Do(const Action& action, Deliveries* deliveries) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  JobStatus WithEvents(const JobStatus& status) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Wake(const std::string& job, Deliveries* deliveries) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Write(const StoreChanges& changes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Outcome> Decide(const Event& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DoAll(const Outcome& outcome, Deliveries* deliveries) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CloseAll(const absl::Status& status, Deliveries* deliveries)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void Deliver(const Deliveries& deliveries);
  void RunBackground() ABSL_LOCKS_EXCLUDED(mutex_);
  void RunTicks() ABSL_LOCKS_EXCLUDED(mutex_);
  void TickLocked(absl::Time* last, Deliveries* deliveries) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const CoordinatorOptions options_;

  mutable Mutex mutex_;
  CondVar changed_;
  ClusterState state_ ABSL_GUARDED_BY(mutex_);
  const std::unique_ptr<Store> store_ ABSL_PT_GUARDED_BY(mutex_);
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, std::shared_ptr<Outbox<AgentCommand>>> agents_ ABSL_GUARDED_BY(mutex_);
  std::vector<ReadyCall> ready_calls_ ABSL_GUARDED_BY(mutex_);
  std::vector<ProgressStream> progress_ ABSL_GUARDED_BY(mutex_);
  std::vector<Watcher> watchers_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> last_sequences_ ABSL_GUARDED_BY(mutex_);
  std::deque<BackgroundWork> background_ ABSL_GUARDED_BY(mutex_);

  // Notes of the archive come here, so it goes first.
  std::unique_ptr<CheckpointArchive> archive_;
  std::unique_ptr<CheckpointKeeper> keeper_;  // of the background thread
  std::thread background_thread_;
  std::thread tick_thread_;
};

}  // namespace moesaic
