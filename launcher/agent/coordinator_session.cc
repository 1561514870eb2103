#include "launcher/agent/coordinator_session.h"

#include <utility>

#include "base/log.h"
#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

constexpr absl::Duration kRenewEvery = absl::Seconds(1);
constexpr absl::Duration kReconnectDelay = absl::Milliseconds(500);
constexpr size_t kRememberedEnds = 16;

}  // namespace

CoordinatorSession::CoordinatorSession(CoordinatorSessionOptions options, SessionOwner* owner)
    : options_(std::move(options)),
      owner_(owner),
      stub_(Coordinator::NewStub(options_.channel)),
      lost_since_(Clock::System().Now()) {}

void CoordinatorSession::Open() {
  stream_thread_ = std::thread([this] { Keep(); });
  renewal_thread_ = std::thread([this] { RenewLease(); });
}

void CoordinatorSession::Close() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    if (context_ != nullptr) context_->TryCancel();
    changed_.NotifyAll();
  }
  if (renewal_thread_.joinable()) renewal_thread_.join();
  if (stream_thread_.joinable()) stream_thread_.join();
}

bool CoordinatorSession::Say(AgentMessage message) {
  {
    MutexLock lock(&mutex_);
    if (message.has_ended()) Remember(message.ended());
    if (lost_since_ != absl::InfiniteFuture()) return false;  // a write might wait for long
  }
  return Write(std::move(message));
}

void CoordinatorSession::Remember(const GenerationEnded& ended) {
  ended_.push_back(ended);
  if (ended_.size() <= kRememberedEnds) return;
  ended_.pop_front();
  if (registered_ends_ > 0) --registered_ends_;
}

void CoordinatorSession::Keep() {
  while (true) {
    const absl::Status status = RunStream();
    MutexLock lock(&mutex_);
    context_ = nullptr;
    if (stopping_) return;
    if (lost_since_ == absl::InfiniteFuture()) lost_since_ = Clock::System().Now();
    LogWarning("the coordinator's stream ended ({}); connecting again",
               std::string(status.message()));
    changed_.WaitFor(&mutex_, kReconnectDelay);
    if (stopping_) return;
  }
}

absl::Status CoordinatorSession::RunStream() {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  {
    MutexLock lock(&mutex_);
    if (stopping_) return absl::OkStatus();
    context_ = &context;
  }
  const std::unique_ptr<Stream> stream = stub_->AgentSession(&context);
  {
    MutexLock lock(&write_mutex_);
    stream_ = stream.get();
  }
  Register();
  AgentCommand command;
  while (stream->Read(&command)) {
    if (command.has_welcome()) TakeWelcome();
    owner_->Obey(command);
  }
  context.TryCancel();  // a writer may be waiting, and holds its mutex
  {
    MutexLock lock(&write_mutex_);
    stream_ = nullptr;
  }
  return FromGrpc(stream->Finish());
}

void CoordinatorSession::Register() {
  AgentMessage message;
  *message.mutable_registration() = owner_->Registration();
  {
    MutexLock lock(&mutex_);
    for (const GenerationEnded& ended : ended_)
      *message.mutable_registration()->add_ended() = ended;
    registered_ends_ = ended_.size();
  }
  Write(std::move(message));
}

void CoordinatorSession::TakeWelcome() {
  std::deque<GenerationEnded> since;  // the registration
  {
    MutexLock lock(&mutex_);
    lost_since_ = absl::InfiniteFuture();
    ended_.erase(ended_.begin(), ended_.begin() + static_cast<ptrdiff_t>(registered_ends_));
    registered_ends_ = 0;
    since = ended_;
  }
  for (GenerationEnded& ended : since) {
    AgentMessage message;
    *message.mutable_ended() = std::move(ended);
    Write(std::move(message));
  }
}

bool CoordinatorSession::Write(AgentMessage message) {
  message.set_agent(options_.agent);
  message.set_incarnation(options_.incarnation);
  MutexLock lock(&write_mutex_);
  return stream_ != nullptr && stream_->Write(message);
}

void CoordinatorSession::RenewLease() {
  while (true) {
    absl::Duration lost;
    {
      MutexLock lock(&mutex_);
      if (!stopping_) changed_.WaitFor(&mutex_, kRenewEvery);
      if (stopping_) return;
      lost = Clock::System().Now() - lost_since_;
    }
    if (lost > absl::ZeroDuration()) {
      owner_->OutOfContact(lost);
      continue;
    }
    AgentMessage message;
    message.mutable_renewal();
    Write(std::move(message));
  }
}

}  // namespace moesaic
