#include "scheduler/service/event_stream.h"

#include <iterator>
#include <utility>

#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

constexpr uint32_t kPage = 256;

}  // namespace

EventStream::EventStream(CoordinatorCore* core, const WatchJobRequest& request)
    : core_(core), feed_(std::make_shared<Feed>(this, core, request)) {
  const absl::Status status = core_->Watch(request.job(), feed_);
  if (status.ok()) {
    feed_->Wake();
  } else {
    feed_->End(status);
  }
}

void EventStream::OnWriteDone(bool ok) { feed_->OnWritten(ok); }

void EventStream::OnCancel() { feed_->End(absl::CancelledError("the watcher left")); }

void EventStream::OnDone() {
  core_->Unwatch(feed_.get());
  feed_->Detach();
  delete this;
}

void EventStream::Feed::OnWritten(bool ok) {
  {
    MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok && !ending_) {
      ending_ = true;
      status_ = absl::UnavailableError("the stream broke");
    }
  }
  Pump();
}

void EventStream::Feed::End(absl::Status status) {
  {
    MutexLock lock(&mutex_);
    if (!ending_) {
      ending_ = true;
      status_ = std::move(status);
    }
  }
  Pump();
}

void EventStream::Feed::Detach() {
  MutexLock lock(&mutex_);
  stream_ = nullptr;
}

// gRPC may call back from within a call to it, so none is made under the lock.
void EventStream::Feed::Pump() {
  EventStream* stream = nullptr;
  Next next = Next::kNothing;
  {
    MutexLock lock(&mutex_);
    if (stream_ == nullptr || writing_ || finished_) return;
    next = Advance();
    stream = stream_;
  }
  if (next == Next::kWrite) stream->StartWrite(&current_);
  if (next == Next::kFinish) stream->Finish(ToGrpc(status_));
}

EventStream::Feed::Next EventStream::Feed::Advance() {
  if (!ending_ && page_.empty()) ReadPage();
  if (!page_.empty() && status_.ok()) {
    current_ = std::move(page_.front());
    page_.pop_front();
    writing_ = true;
    return Next::kWrite;
  }
  if (!ending_) return Next::kNothing;
  finished_ = true;
  return Next::kFinish;
}

void EventStream::Feed::ReadPage() {
  absl::StatusOr<EventPage> page = core_->ReadEvents(job_, after_, kPage);
  if (!page.ok()) {
    ending_ = true;
    status_ = page.status();
    return;
  }
  page_.assign(std::make_move_iterator(page->events.begin()),
               std::make_move_iterator(page->events.end()));
  if (!page_.empty()) after_ = page_.back().sequence();
  ending_ = page->last;
}

}  // namespace moesaic
