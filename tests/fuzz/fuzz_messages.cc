// Any bytes as the messages of agents, workers and people, fed to the checks of the edges and to
// the cluster state: none may harm it, and an event that is refused changes nothing. The input is a
// list of (kind, length, message), one byte each for the first two; the cluster starts with one
// node and a running job. An empty token stands for the right one, so that what is behind it is
// reached.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <optional>
#include <string>

#include "base/foreign_text.h"
#include "proto/job_spec.h"
#include "scheduler/service/submission.h"
#include "scheduler/state/cluster_state.h"

namespace moesaic {
namespace {

constexpr char kToken[] = "token";
constexpr char kStaged[] = "/c/.staging/s";

void Require(bool holds) {
  if (!holds) std::abort();
}

JobSpec SmallSpec() {
  JobSpec spec;
  spec.set_name("a");
  ModelSpec* model = spec.mutable_model();
  model->set_layers(1);
  model->set_hidden(16);
  model->set_heads(2);
  model->set_sequence(8);
  model->set_vocabulary(64);
  model->mutable_moe()->set_experts(2);
  model->mutable_moe()->set_active(1);
  model->mutable_moe()->set_expert_width(8);
  spec.mutable_data()->add_train()->set_path("corpus");
  spec.mutable_train()->set_steps(10);
  spec.mutable_train()->set_global_batch(4);
  spec.mutable_train()->set_micro_batch(1);
  spec.mutable_elastic()->mutable_nodes()->set_min(1);
  spec.mutable_elastic()->mutable_nodes()->set_max(1);
  spec.mutable_elastic()->set_slots_per_node(2);
  ApplyDefaults(&spec);
  return spec;
}

ShardsPersisted InStaging(ShardsPersisted shards) {
  if (shards.staging().empty()) shards.set_staging(kStaged);
  return shards;
}

class Cluster {
 public:
  Cluster() {
    AgentRegistration registration;
    registration.set_slots(2);
    registration.set_cores(2);
    registration.set_arena_dir("/dev/shm/x");
    Do(AgentJoined{"n1", "i", registration});
    Do(JobSubmitted{SmallSpec(), "auto"});
    Pass(absl::Seconds(4));
  }

  void Do(const Event& event) {
    const Outcome outcome = state_.Handle(event, now_);
    // An event that is refused has no effect.
    Require(outcome.status.ok() || (outcome.records.empty() && outcome.actions.empty()));
    for (const Action& action : outcome.actions) {
      if (const std::optional<Event> answer = Answer(action)) asked_.push_back(*answer);
    }
    while (!asked_.empty()) {
      const Event next = std::move(asked_.front());
      asked_.pop_front();
      Do(next);
    }
  }

  // As the disk would: there is nothing to start from, and every save succeeds.
  static std::optional<Event> Answer(const Action& action) {
    if (const auto* choose = std::get_if<ChooseRestore>(&action)) {
      RestoreChosen chosen;
      chosen.job = choose->job;
      chosen.attempt = choose->attempt;
      return chosen;
    }
    if (const auto* stage = std::get_if<StageCheckpoint>(&action)) {
      return CheckpointStaged{stage->job, stage->generation, stage->step, absl::OkStatus(),
                              kStaged};
    }
    if (const auto* commit = std::get_if<CommitCheckpoint>(&action)) {
      return CommitFinished{commit->job, commit->generation, commit->step, absl::OkStatus(), "/c"};
    }
    return std::nullopt;
  }

  void Pass(absl::Duration time) {
    now_ += time;
    Do(AgentRenewed{"n1", "i"});
    Do(Tick{});
  }

  // What scheduler/service/server.cc makes of the messages of an agent's stream.
  void Take(const AgentMessage& message) {
    if (!CheckName("node", message.agent()).ok()) return;
    const std::string& agent = message.agent();
    const std::string& incarnation = message.incarnation();
    switch (message.kind_case()) {
      case AgentMessage::kRegistration:
        return Do(AgentJoined{agent, incarnation, message.registration()});
      case AgentMessage::kRenewal: return Do(AgentRenewed{agent, incarnation});
      case AgentMessage::kEnded: return Do(GenerationEnd{agent, incarnation, message.ended()});
      case AgentMessage::kPersisted:
        return Do(ShardsReported{agent, incarnation, InStaging(message.persisted())});
      case AgentMessage::kReplicated:
        return Do(CopiesReported{agent, incarnation, message.replicated()});
      case AgentMessage::kPreempted:
        return Do(AgentPreempted{agent, incarnation, message.preempted().reason()});
      default: return Do(AgentLost{agent, incarnation, "its stream broke"});
    }
  }

 private:
  absl::Time now_ = absl::FromUnixSeconds(1000);
  ClusterState state_{ClusterOptions(), {}, now_};
  std::deque<Event> asked_;
};

WorkerIdentity Known(WorkerIdentity worker) {
  if (worker.token().empty()) worker.set_token(kToken);
  return worker;
}

template <typename Message, typename Take>
void Parse(const std::string& bytes, const Take& take) {
  Message message;
  if (message.ParseFromString(bytes)) take(message);
}

void TakeMessage(uint8_t kind, const std::string& bytes, Cluster* cluster) {
  switch (kind % 10) {
    case 0:
      return Parse<SubmitJobRequest>(bytes, [&](const SubmitJobRequest& request) {
        if (!CheckSubmission(request).ok()) return;
        cluster->Do(JobSubmitted{request.spec(), request.resume()});
      });
    case 1:
      return Parse<StopJobRequest>(bytes, [&](const StopJobRequest& request) {
        cluster->Do(StopRequested{request.job(), request.now()});
      });
    case 2:
      return Parse<AgentMessage>(bytes, [&](const AgentMessage& m) { cluster->Take(m); });
    case 3:
      return Parse<WorkerIdentity>(bytes, [&](const WorkerIdentity& worker) {
        cluster->Do(RankTableAsked{Known(worker)});
      });
    case 4:
      return Parse<ReadyRequest>(bytes, [&](ReadyRequest request) {
        *request.mutable_worker() = Known(request.worker());
        cluster->Do(RankReady{request});
      });
    case 5:
      return Parse<StepReport>(bytes, [&](StepReport report) {
        *report.mutable_worker() = Known(report.worker());
        cluster->Do(StepReported{report});
      });
    case 6:
      return Parse<SnapshotReport>(bytes, [&](SnapshotReport report) {
        *report.mutable_worker() = Known(report.worker());
        cluster->Do(SnapshotReported{report});
      });
    case 7:
      return Parse<ResizeJobRequest>(bytes, [&](const ResizeJobRequest& request) {
        cluster->Do(ResizeRequested{request.job(), request.min_nodes(), request.max_nodes()});
      });
    case 8:
      return Parse<ChangeNodeRequest>(bytes, [&](const ChangeNodeRequest& request) {
        cluster->Do(NodeChangeRequested{request});
      });
    default: return cluster->Pass(absl::Seconds(1 + bytes.size()));
  }
}

}  // namespace
}  // namespace moesaic

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  moesaic::Cluster cluster;
  while (size >= 2) {
    const size_t bytes = std::min<size_t>(data[1], size - 2);
    moesaic::TakeMessage(data[0], std::string(reinterpret_cast<const char*>(data) + 2, bytes),
                         &cluster);
    data += 2 + bytes;
    size -= 2 + bytes;
  }
  return 0;
}
