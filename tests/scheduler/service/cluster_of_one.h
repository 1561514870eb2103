// A coordinator with its server on loopback, and one agent without a connection that the test
// plays.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "scheduler/service/server.h"
#include "tests/base/scratch_folder.h"

namespace moesaic {

// Keeps what it is given.
template <typename Message>
class RecordingOutbox : public Outbox<Message> {
 public:
  void Push(Message message) override {
    MutexLock lock(&mutex_);
    messages_.push_back(std::move(message));
  }
  void Close(absl::Status) override {}
  void Pump() override {}
  std::vector<Message> messages() {
    MutexLock lock(&mutex_);
    return messages_;
  }

 private:
  Mutex mutex_;
  std::vector<Message> messages_ ABSL_GUARDED_BY(mutex_);
};

class ClusterOfOne : public ::testing::Test {
 protected:
  void SetUp() override { StartServer("127.0.0.1:0"); }
  void TearDown() override { StopServer(); }

  void StartServer(const std::string& listen) {
    CoordinatorOptions options;
    options.cluster.join_wait = absl::ZeroDuration();
    options.store_path = dir_ + "/coordinator.sqlite";
    options.tick = absl::ZeroDuration();
    options.verify_checkpoints = verify_checkpoints_;
    if (files_ != nullptr) options.files = files_;
    auto core = CoordinatorCore::Open(options);
    ASSERT_TRUE(core.ok()) << core.status();
    core_ = *std::move(core);
    ServerOptions serving;
    serving.listen = listen;
    auto server = CoordinatorServer::Start(core_.get(), serving);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void StopServer() {
    server_.reset();
    core_.reset();
  }

  // Registers node n1, submits the job and waits for the start of its next generation.
  StartGeneration StartJob(const JobSpec& spec) {
    JoinAgent();
    const absl::Status submitted = core_->Handle(JobSubmitted{spec, "auto"});
    EXPECT_TRUE(submitted.ok()) << submitted;
    return WaitForStart();
  }
  void JoinAgent() {
    AgentRegistration registration;
    registration.set_slots(1);
    registration.set_cores(1);
    registration.set_host("localhost");
    registration.set_arena_dir(dir_);
    agent_ = std::make_shared<RecordingOutbox<AgentCommand>>();
    EXPECT_TRUE(core_->Join(AgentJoined{"n1", "i", registration}, agent_).ok());
  }
  StartGeneration WaitForStart() {
    while (true) {
      for (const AgentCommand& command : agent_->messages()) {
        if (command.has_start()) return command.start();
      }
      std::this_thread::yield();
    }
  }
  // As the agent reports it.
  void EndGeneration(const StartGeneration& start, int exit_code) {
    GenerationEnd end{"n1", "i", {}};
    end.report.set_job(start.job());
    end.report.set_generation(start.generation());
    end.report.set_exit_code(exit_code);
    core_->Handle(end).IgnoreError();
  }

  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  FileSystem* files_ = nullptr;  // of the machine, where null
  bool verify_checkpoints_ = true;
  std::unique_ptr<CoordinatorCore> core_;
  std::unique_ptr<CoordinatorServer> server_;
  std::shared_ptr<RecordingOutbox<AgentCommand>> agent_;
};

}  // namespace moesaic
