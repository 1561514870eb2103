// CoordinatorSession: an agent's stream to the coordinator. Connects in the background, registers,
// renews the lease every second, and connects again whenever the stream ends.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "proto/coordinator.grpc.pb.h"

namespace moesaic {

// What a session needs of its agent. Called from the stream's thread, one call at a time.
class SessionOwner {
 public:
  virtual ~SessionOwner() = default;
  // All but `ended`, which the session keeps itself.
  virtual AgentRegistration Registration() = 0;
  virtual void Obey(const AgentCommand& command) = 0;
  // From another thread, every second while the coordinator is not heard of.
  virtual void OutOfContact(absl::Duration since) = 0;
};

struct CoordinatorSessionOptions {
  std::string agent;        // name of the node
  std::string incarnation;  // of this agent process
  std::shared_ptr<grpc::Channel> channel;
};

// Thread-safe.
class CoordinatorSession {
 public:
  // `owner` must outlive this.
  CoordinatorSession(CoordinatorSessionOptions options, SessionOwner* owner);
  ~CoordinatorSession() { Close(); }
  CoordinatorSession(const CoordinatorSession&) = delete;
  CoordinatorSession& operator=(const CoordinatorSession&) = delete;

  // Connects; calls to the owner may follow. Once.
  void Open();
  // Ends the stream, and with it the calls to the owner: to the coordinator the agent is gone. What
  // is said from now on is lost. May be called again.
  void Close();
  // False when no registration stands, and the message is lost. What registration says anew need
  // not be looked after; ends of generations are kept and said again at the next registration.
  bool Say(AgentMessage message);

 private:
  using Stream = grpc::ClientReaderWriter<AgentMessage, AgentCommand>;

  void Keep();
  absl::Status RunStream();
  void Register();
  void RenewLease();
  void TakeWelcome();
  void Remember(const GenerationEnded& ended) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Write(AgentMessage message);

  const CoordinatorSessionOptions options_;
  SessionOwner* const owner_;
  const std::unique_ptr<Coordinator::Stub> stub_;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::Time lost_since_ ABSL_GUARDED_BY(mutex_);  // InfiniteFuture while the stream stands
  // The newest ends of generations. A stream may break with what was written to it last, so they
  // are forgotten only once a registration that names them was welcomed.
  std::deque<GenerationEnded> ended_ ABSL_GUARDED_BY(mutex_);
  size_t registered_ends_ ABSL_GUARDED_BY(mutex_) = 0;  // from the front, in this registration

  Mutex write_mutex_;  // one Write at a time; never taken together with mutex_
  Stream* stream_ ABSL_GUARDED_BY(write_mutex_) = nullptr;

  std::thread stream_thread_;
  std::thread renewal_thread_;
};

}  // namespace moesaic
