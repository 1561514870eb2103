// A coordinator that only commands agents, as it is told on stdin, and says on stdout what they
// say:
//
//   fake_coordinator LISTEN RUN_DIR SLOTS
//
//   start NODE...  -> a generation on these nodes, the first being the head
//   kill, kill now -> KillGeneration to all of its nodes
//   leave NODE     -> AgentLeave
//
//   registered NODE [running GENERATION] [ended GENERATION...]
//   lost NODE
//   started GENERATION
//   preempted NODE REASON
//   ended NODE GENERATION exit CODE rank (RANK|-) FAILURE
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "base/mutex.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

using Stream = grpc::ServerReaderWriter<AgentCommand, AgentMessage>;

class FakeCoordinator : public Coordinator::Service {
 public:
  FakeCoordinator(std::string run_dir, uint32_t slots)
      : run_dir_(std::move(run_dir)), slots_(slots) {}

  void Obey(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    std::vector<std::string> rest;
    for (std::string word; words >> word;) rest.push_back(word);
    if (verb == "start") Start(rest);
    if (verb == "kill") Kill(!rest.empty());
    if (verb == "leave") {
      AgentCommand command;
      command.mutable_leave()->set_reason("told to");
      Send(rest.at(0), command);
    }
  }

  grpc::Status AgentSession(grpc::ServerContext*, Stream* stream) override {
    AgentMessage message;
    std::string node;
    while (stream->Read(&message)) {
      if (message.has_registration()) {
        node = message.agent();
        Register(node, message.registration(), stream);
      } else if (message.has_ended()) {
        SayEnded(node, message.ended());
      } else if (message.has_preempted()) {
        Print(fmt::format("preempted {} {}", node, message.preempted().reason()));
      }
    }
    MutexLock lock(&mutex_);
    if (const auto found = streams_.find(node);
        found != streams_.end() && found->second == stream) {
      streams_.erase(found);
    }
    Print("lost " + node);
    return grpc::Status::OK;
  }

 private:
  static void Print(const std::string& line) {
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  }

  void Register(const std::string& node, const AgentRegistration& registration, Stream* stream) {
    std::string text = "registered " + node;
    if (registration.running_generation() != 0) {
      text += fmt::format(" running {}", registration.running_generation());
    }
    for (const GenerationEnded& ended : registration.ended()) {
      text += fmt::format(" ended {}", ended.generation());
    }
    AgentCommand command;
    command.mutable_welcome()->set_orphan_grace_seconds(3);
    command.mutable_welcome()->set_adopted(registration.running_generation() == generation_);
    MutexLock lock(&mutex_);
    agents_[node] = registration;
    streams_[node] = stream;
    stream->Write(command);
    Print(text);
  }

  static void SayEnded(const std::string& node, const GenerationEnded& ended) {
    std::string failure = ended.first_failure();
    std::replace(failure.begin(), failure.end(), '\n', ' ');
    Print(fmt::format("ended {} {} exit {} rank {} {}", node, ended.generation(), ended.exit_code(),
                      ended.has_failed_rank() ? std::to_string(ended.failed_rank()) : "-",
                      failure));
  }

  void Start(const std::vector<std::string>& nodes) {
    AgentCommand command;
    StartGeneration* start = command.mutable_start();
    start->set_job("job");
    start->set_generation(++generation_);
    start->set_ranks(slots_ * static_cast<uint32_t>(nodes.size()));
    start->set_threads(1);
    start->set_allow_root(true);
    start->set_oversubscribe(true);
    start->set_run_dir(run_dir_);
    start->set_token(fmt::format("token-{}", generation_));
    {
      MutexLock lock(&mutex_);
      for (const std::string& node : nodes) {
        HostSlots* host = start->add_hosts();
        host->set_node(node);
        host->set_host(agents_[node].host());
        host->set_address(agents_[node].address());
        host->set_slots(slots_);
      }
      nodes_ = nodes;
    }
    for (const std::string& node : nodes) {
      start->set_head(node == nodes[0]);
      Send(node, command);
    }
    Print(fmt::format("started {}", generation_));
  }

  void Kill(bool now) {
    AgentCommand command;
    command.mutable_kill()->set_job("job");
    command.mutable_kill()->set_generation(generation_);
    command.mutable_kill()->set_now(now);
    for (const std::string& node : nodes_) Send(node, command);
  }

  void Send(const std::string& node, const AgentCommand& command) {
    MutexLock lock(&mutex_);
    if (const auto found = streams_.find(node); found != streams_.end())
      found->second->Write(command);
  }

  const std::string run_dir_;
  const uint32_t slots_;
  uint64_t generation_ = 0;
  std::vector<std::string> nodes_;
  Mutex mutex_;
  std::map<std::string, AgentRegistration> agents_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Stream*> streams_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  moesaic::FakeCoordinator coordinator(argv[2], static_cast<uint32_t>(std::atoi(argv[3])));
  grpc::ServerBuilder builder;
  moesaic::ConfigureServer(&builder);
  int port = 0;
  builder.AddListeningPort(argv[1], grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&coordinator);
  const auto server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  std::printf("listening %d\n", port);
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) coordinator.Obey(line);
  server->Shutdown(std::chrono::system_clock::now());
  return 0;
}
