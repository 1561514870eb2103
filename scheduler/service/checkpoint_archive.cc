#include "scheduler/service/checkpoint_archive.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/log.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

constexpr int kLowestPriority = 19;

std::string AbsolutePath(const std::string& dir) {
  return std::filesystem::absolute(dir).lexically_normal().string();
}

const CheckpointEntry* FindPath(const std::vector<CheckpointEntry>& entries,
                                const std::string& path) {
  const auto found = std::find_if(entries.begin(), entries.end(), [&](const CheckpointEntry& e) {
    return e.path() == path;
  });
  return found == entries.end() ? nullptr : &*found;
}

CheckpointEvent EventOf(CheckpointEvent::Kind kind, const CheckpointEntry& entry) {
  CheckpointEvent event;
  event.set_kind(kind);
  *event.mutable_checkpoint() = entry;
  event.set_detail(entry.quarantined());
  return event;
}

bool Equal(const std::vector<CheckpointEntry>& a, const std::vector<CheckpointEntry>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const CheckpointEntry& x, const CheckpointEntry& y) {
                      return x.SerializeAsString() == y.SerializeAsString();
                    });
}

// What happened between two states of a job's catalog.
std::vector<CheckpointEvent> Differences(const std::vector<CheckpointEntry>& before,
                                         const std::vector<CheckpointEntry>& after) {
  std::vector<CheckpointEvent> events;
  for (const CheckpointEntry& entry : after) {
    const CheckpointEntry* old = FindPath(before, entry.path());
    if (old == nullptr) {
      events.push_back(EventOf(entry.quarantined().empty() ? CheckpointEvent::COMMITTED
                                                           : CheckpointEvent::QUARANTINED,
                               entry));
    } else if (old->pinned() != entry.pinned()) {
      events.push_back(
          EventOf(entry.pinned() ? CheckpointEvent::PINNED : CheckpointEvent::UNPINNED, entry));
    }
  }
  for (const CheckpointEntry& entry : before) {
    if (!entry.quarantined().empty() || FindPath(after, entry.path()) != nullptr) continue;
    const bool aside = std::any_of(events.begin(), events.end(), [&](const CheckpointEvent& event) {
      return event.kind() == CheckpointEvent::QUARANTINED &&
             event.checkpoint().step() == entry.step();
    });
    if (!aside) events.push_back(EventOf(CheckpointEvent::DELETED, entry));
  }
  return events;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointArchive>> CheckpointArchive::Open(ArchiveOptions options) {
  absl::StatusOr<std::unique_ptr<CheckpointCatalog>> catalog =
      CheckpointCatalog::Open(options.catalog_path);
  if (!catalog.ok()) return catalog.status();
  return std::unique_ptr<CheckpointArchive>(
      new CheckpointArchive(std::move(options), *std::move(catalog)));
}

CheckpointArchive::CheckpointArchive(ArchiveOptions options,
                                     std::unique_ptr<CheckpointCatalog> catalog)
    : options_(std::move(options)), catalog_(std::move(catalog)) {
  if (options_.verify) verification_ = std::thread([this] { RunVerification(); });
}

CheckpointArchive::~CheckpointArchive() {
  stopping_ = true;
  {
    MutexLock lock(&mutex_);
    changed_.NotifyAll();
  }
  if (verification_.joinable()) verification_.join();
}

// ---- Roots and the catalog.

std::shared_ptr<CheckpointArchive::JobRoot> CheckpointArchive::RootOf(const std::string& job) {
  MutexLock lock(&mutex_);
  std::shared_ptr<JobRoot>& held = roots_[job];
  if (held == nullptr) held = std::make_shared<JobRoot>();
  return held;
}

absl::Status CheckpointArchive::OpenRoot(JobRoot* held, const std::string& dir) {
  const std::string path = AbsolutePath(dir);
  if (held->root != nullptr && held->root->path() == path) return absl::OkStatus();
  held->root.reset();
  absl::StatusOr<std::unique_ptr<CheckpointRoot>> opened =
      CheckpointRoot::Open(options_.files, path, options_.clock);
  if (!opened.ok()) return opened.status();
  // Nothing of this life is being written there yet.
  if (const absl::Status swept = (*opened)->Sweep(0); !swept.ok()) return swept;
  held->root = *std::move(opened);
  return absl::OkStatus();
}

absl::Status CheckpointArchive::With(const std::string& job, const std::string& dir,
                                     const std::function<absl::Status(CheckpointRoot*)>& work) {
  const std::shared_ptr<JobRoot> held = RootOf(job);
  std::vector<CheckpointEvent> events;
  absl::Status status;
  {
    MutexLock lock(&held->mutex);
    status = OpenRoot(held.get(), dir);
    if (!status.ok()) return status;
    status = work(held->root.get());
    absl::StatusOr<std::vector<CheckpointEvent>> news = Reconcile(job, *held->root);
    if (news.ok()) {
      events = *std::move(news);
    } else {
      LogWarning("job {}: the catalog of checkpoints is behind: {}", job,
                 std::string(news.status().message()));
    }
  }
  Tell(events);
  return status;
}

absl::StatusOr<std::vector<CheckpointEvent>> CheckpointArchive::Reconcile(
    const std::string& job, const CheckpointRoot& root) {
  absl::StatusOr<std::vector<CheckpointEntry>> before;
  {
    MutexLock lock(&mutex_);
    before = catalog_->List(job);
  }
  if (!before.ok()) return before.status();
  const absl::StatusOr<std::vector<CheckpointEntry>> after = Scan(job, root, *before);
  if (!after.ok()) return after.status();
  std::vector<CheckpointEvent> events = Differences(*before, *after);
  MutexLock lock(&mutex_);
  if (!Equal(*before, *after)) {
    if (const absl::Status put = catalog_->Replace(job, *after); !put.ok()) return put;
  }
  for (const CheckpointEvent& event : events) {
    if (event.kind() != CheckpointEvent::COMMITTED || !options_.verify) continue;
    unverified_.push_back({job, root.path(), event.checkpoint().step()});
    changed_.NotifyAll();
  }
  return events;
}

// Manifests are read only of steps that the catalog does not know, or whose manifest it could not
// read.
absl::StatusOr<std::vector<CheckpointEntry>> CheckpointArchive::Scan(
    const std::string& job, const CheckpointRoot& root,
    const std::vector<CheckpointEntry>& known) const {
  const absl::StatusOr<std::vector<uint64_t>> steps = root.Steps();
  if (!steps.ok()) return steps.status();
  const absl::StatusOr<std::map<uint64_t, std::string>> pins = root.Pins();
  if (!pins.ok()) return pins.status();
  const absl::StatusOr<std::vector<QuarantinedStep>> quarantined = root.Quarantined();
  if (!quarantined.ok()) return quarantined.status();
  std::vector<CheckpointEntry> entries;
  for (const uint64_t step : *steps) {
    const std::string path = root.StepPath(step);
    const CheckpointEntry* old = FindPath(known, path);
    const bool kept = old != nullptr && old->unreadable().empty();
    CheckpointEntry& entry = entries.emplace_back(kept ? *old : Describe(job, step, root, path));
    const auto pin = pins->find(step);
    entry.set_pinned(pin != pins->end());
    entry.set_pin_note(pin == pins->end() ? "" : pin->second);
  }
  for (const QuarantinedStep& aside : *quarantined) {
    const CheckpointEntry* old = FindPath(known, aside.path);
    entries.push_back(old == nullptr ? Describe(job, aside.step, root, aside.path) : *old);
    entries.back().set_quarantined(aside.reason.empty() ? "unknown" : aside.reason);
    entries.back().set_pinned(aside.was_pinned);
    if (aside.when != absl::InfinitePast()) {
      entries.back().set_quarantined_unix_ns(absl::ToUnixNanos(aside.when));
    }
  }
  std::sort(entries.begin(), entries.end(), [](const auto& x, const auto& y) {
    return std::pair(x.step(), x.path()) < std::pair(y.step(), y.path());
  });
  return entries;
}

CheckpointEntry CheckpointArchive::Describe(const std::string& job, uint64_t step,
                                            const CheckpointRoot& root, const std::string& path) {
  CheckpointEntry entry;
  entry.set_job(job);
  entry.set_step(step);
  entry.set_path(path);
  const absl::StatusOr<std::unique_ptr<Folder>> folder = root.OpenFolderAt(path);
  const absl::StatusOr<Manifest> manifest =
      folder.ok() ? ReadManifest(**folder) : absl::StatusOr<Manifest>(folder.status());
  if (!manifest.ok()) {
    entry.set_unreadable(std::string(manifest.status().message()));
    return entry;
  }
  entry.set_generation(manifest->generation());
  entry.set_created_unix_ns(manifest->created_unix_ns());
  uint64_t bytes = 0;
  uint64_t reused = 0;
  for (const StoredFile& file : manifest->files()) {
    bytes += file.bytes();
    if (file.has_written_at_step()) reused += file.bytes();
  }
  entry.set_bytes(bytes);
  entry.set_reused_bytes(reused);
  entry.set_files(static_cast<uint32_t>(manifest->files_size()));
  entry.set_layout(manifest->layout());
  entry.set_weights_only(manifest->weights_only());
  const TrainingState& state = manifest->state();
  if (state.has_loss()) entry.set_loss(state.loss());
  if (state.has_validation_loss()) entry.set_validation_loss(state.validation_loss());
  return entry;
}

absl::StatusOr<std::unique_ptr<Folder>> CheckpointArchive::OpenFolderOf(
    const std::string& dir, const CheckpointEntry& entry) {
  absl::StatusOr<std::unique_ptr<Folder>> folder;
  const absl::Status opened = With(entry.job(), dir, [&](CheckpointRoot* root) {
    folder = root->OpenFolderAt(entry.path());
    return folder.status();
  });
  if (!opened.ok()) return opened;
  return folder;
}

absl::StatusOr<Manifest> CheckpointArchive::ManifestOf(const std::string& dir,
                                                       const CheckpointEntry& entry) {
  const absl::StatusOr<std::unique_ptr<Folder>> folder = OpenFolderOf(dir, entry);
  if (!folder.ok()) return folder.status();
  return ReadManifest(**folder);
}

// ---- What people ask for.

absl::StatusOr<std::vector<CheckpointEntry>> CheckpointArchive::List(const std::string& job,
                                                                     const std::string& dir) {
  const absl::Status opened =
      With(job, dir, [](CheckpointRoot*) { return absl::OkStatus(); });
  if (!opened.ok()) return opened;
  MutexLock lock(&mutex_);
  return catalog_->List(job);
}

absl::StatusOr<CheckpointEntry> CheckpointArchive::Find(const std::string& job,
                                                        const std::string& dir, uint64_t step) {
  const absl::StatusOr<std::vector<CheckpointEntry>> entries = List(job, dir);
  if (!entries.ok()) return entries.status();
  const CheckpointEntry* found = nullptr;
  for (const CheckpointEntry& entry : *entries) {
    if (entry.quarantined().empty() && (step == 0 || entry.step() == step)) found = &entry;
  }
  if (found != nullptr) return *found;
  return absl::NotFoundError(
      step == 0 ? fmt::format("job {} has no checkpoint in {}", job, AbsolutePath(dir))
                : fmt::format("job {} has no checkpoint of step {} in {}", job, step,
                              AbsolutePath(dir)));
}

absl::Status CheckpointArchive::Delete(const std::string& job, const std::string& dir,
                                       uint64_t step, bool force, uint64_t in_use) {
  const absl::StatusOr<CheckpointEntry> entry = Find(job, dir, step);
  if (!entry.ok()) return entry.status();
  if (entry->step() == in_use) {
    return absl::FailedPreconditionError(
        fmt::format("job {} would go on from step {}: stop it first", job, in_use));
  }
  return With(job, dir,
              [&](CheckpointRoot* root) { return root->Remove(entry->step(), force); });
}

absl::StatusOr<CheckpointEntry> CheckpointArchive::Pin(const std::string& job,
                                                       const std::string& dir, uint64_t step,
                                                       bool pin, const std::string& note) {
  const absl::StatusOr<CheckpointEntry> entry = Find(job, dir, step);
  if (!entry.ok()) return entry.status();
  const absl::Status done = With(job, dir, [&](CheckpointRoot* root) {
    return pin ? root->Pin(entry->step(), note) : root->Unpin(entry->step());
  });
  if (!done.ok()) return done;
  return Find(job, dir, entry->step());
}

// ---- Verification.

absl::StatusOr<std::vector<std::string>> CheckpointArchive::Verify(const std::string& job,
                                                                   const std::string& dir,
                                                                   uint64_t step,
                                                                   const VerifyOptions& options) {
  const absl::StatusOr<CheckpointEntry> entry = Find(job, dir, step);
  if (!entry.ok()) return entry.status();
  const absl::StatusOr<std::unique_ptr<Folder>> folder = OpenFolderOf(dir, *entry);
  if (!folder.ok()) return folder.status();
  const VerifyReport report = VerifyStep(**folder, options);
  if (report.unreadable) return VerifyStatus(**folder, report);
  if (report.ok()) {
    const absl::Status marked = MarkVerified(*entry);
    if (!marked.ok()) return marked;
    return std::vector<std::string>();
  }
  // It may have been deleted while it was read.
  if (!Find(job, dir, entry->step()).ok()) {
    return absl::NotFoundError(fmt::format("the checkpoint of step {} of job {} was deleted",
                                           entry->step(), job));
  }
  const absl::Status aside =
      SetAside(job, dir, *entry, fmt::format("{}", fmt::join(report.problems, "; ")));
  if (!aside.ok()) return aside;
  return report.problems;
}

absl::Status CheckpointArchive::MarkVerified(const CheckpointEntry& entry) {
  const std::shared_ptr<JobRoot> held = RootOf(entry.job());
  std::vector<CheckpointEvent> events;
  {
    MutexLock root_lock(&held->mutex);  // nobody compares catalog and folders meanwhile
    MutexLock lock(&mutex_);
    absl::StatusOr<std::vector<CheckpointEntry>> entries = catalog_->List(entry.job());
    if (!entries.ok()) return entries.status();
    for (CheckpointEntry& other : *entries) {
      if (other.path() != entry.path() || other.created_unix_ns() != entry.created_unix_ns()) {
        continue;
      }
      other.set_verified_unix_ns(absl::ToUnixNanos(options_.clock->Now()));
      events.push_back(EventOf(CheckpointEvent::VERIFIED, other));
    }
    const absl::Status put = catalog_->Replace(entry.job(), *entries);
    if (!put.ok()) return put;
  }
  Tell(events);
  return absl::OkStatus();
}

absl::Status CheckpointArchive::SetAside(const std::string& job, const std::string& dir,
                                         const CheckpointEntry& entry, const std::string& why) {
  const absl::Status moved = With(
      job, dir, [&](CheckpointRoot* root) { return root->Quarantine(entry.step(), why); });
  if (moved.ok() && options_.note) {
    options_.note(job,
                  fmt::format("WARNING: the checkpoint of step {} is damaged ({}); it was moved "
                              "to {}/.quarantine",
                              entry.step(), why, AbsolutePath(dir)));
  }
  return moved;
}

void CheckpointArchive::RunVerification() {
  // Of this thread alone; training and saving go first.
  setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), kLowestPriority);
  while (true) {
    Unverified next;
    {
      MutexLock lock(&mutex_);
      while (unverified_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (stopping_) return;
      next = std::move(unverified_.back());  // the newest matters most
      unverified_.pop_back();
    }
    VerifyOptions slowly;
    slowly.cancelled = &stopping_;
    const auto problems = Verify(next.job, next.dir, next.step, slowly);
    if (problems.ok() || absl::IsNotFound(problems.status()) || stopping_) continue;
    LogWarning("job {}: the checkpoint of step {} could not be verified: {}", next.job, next.step,
               std::string(problems.status().message()));
  }
}

// ---- Watchers.

uint64_t CheckpointArchive::Watch(Listener listener) {
  MutexLock lock(&mutex_);
  listeners_[next_listener_] = std::make_shared<Listener>(std::move(listener));
  return next_listener_++;
}

void CheckpointArchive::Unwatch(uint64_t number) {
  MutexLock lock(&mutex_);
  listeners_.erase(number);
}

void CheckpointArchive::GivenUp(const std::string& job, uint64_t step, const std::string& why) {
  CheckpointEntry entry;
  entry.set_job(job);
  entry.set_step(step);
  CheckpointEvent event = EventOf(CheckpointEvent::GIVEN_UP, entry);
  event.set_detail(why);
  Tell({event});
}

void CheckpointArchive::Tell(const std::vector<CheckpointEvent>& events) {
  std::vector<std::shared_ptr<Listener>> listeners;
  {
    MutexLock lock(&mutex_);
    for (const auto& [number, listener] : listeners_) listeners.push_back(listener);
  }
  for (const CheckpointEvent& event : events) {
    for (const auto& listener : listeners) (*listener)(event);
  }
}

}  // namespace moesaic
