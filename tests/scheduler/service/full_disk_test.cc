// Saves over the real core and a disk that has no room, or an agent that is slow: they are given
// up, and training goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/scheduler/service/cluster_of_one.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

class FullDiskTest : public ClusterOfOne {
 protected:
  FullDiskTest() { files_ = &disk_; }

  void SetUp() override {
    ClusterOfOne::SetUp();
    JobSpec spec = TinyJob();
    spec.mutable_elastic()->mutable_nodes()->set_min(1);
    spec.mutable_elastic()->mutable_nodes()->set_max(1);
    spec.mutable_elastic()->set_slots_per_node(1);
    spec.mutable_run()->set_dir(dir_);
    spec.mutable_checkpoint()->set_dir("/disk/checkpoints");
    spec.mutable_checkpoint()->set_every_steps(1);
    start_ = StartJob(spec);
    std::atomic<bool> ready{false};
    ReadyRequest request;
    *request.mutable_worker() = Worker();
    core_->Ready(request, [&](absl::Status status) {
      EXPECT_TRUE(status.ok()) << status;
      ready = true;
    });
    ASSERT_TRUE(ready);
    ASSERT_EQ(Status().state(), RUNNING);
  }

  WorkerIdentity Worker() const {
    WorkerIdentity worker;
    worker.set_job(start_.job());
    worker.set_generation(start_.generation());
    worker.set_token(start_.token());
    worker.set_incarnation("w");
    return worker;
  }
  JobStatus Status() const { return *core_->GetJob(start_.job()); }

  // The rank has copied a step; returns the agent's order to write it.
  PersistSnapshot Snapshot(uint64_t step) {
    SnapshotReport report;
    *report.mutable_worker() = Worker();
    report.set_step(step);
    *report.mutable_state() = TinyState(step);
    const absl::Status reported = core_->Handle(SnapshotReported{report});
    EXPECT_TRUE(reported.ok()) << reported;
    while (true) {
      for (const AgentCommand& command : agent_->messages()) {
        if (command.has_persist() && command.persist().step() == step) return command.persist();
      }
      std::this_thread::yield();
    }
  }
  // The agent has written it.
  void Persisted(const PersistSnapshot& order) {
    const auto reports =
        PersistTiny(&disk_, order.staging(), 1, order.step(), order.generation());
    ASSERT_TRUE(reports.ok()) << reports.status();
    ASSERT_TRUE(core_->Handle(ShardsReported{"n1", "i", reports->front()}).ok());
  }
  void ExpectNote(const std::string& text) {
    while (true) {
      const absl::StatusOr<EventPage> page = core_->ReadEvents(start_.job(), 0, 1000);
      ASSERT_TRUE(page.ok());
      for (const JobEvent& event : page->events) {
        if (event.note().find(text) != std::string::npos) return;
      }
      std::this_thread::yield();
    }
  }

  MemoryFileSystem disk_;
  StartGeneration start_;
};

TEST_F(FullDiskTest, C11_ACommitWithoutRoomIsGivenUpAndTheNextOneWorks) {
  const PersistSnapshot order = Snapshot(1);
  const auto reports = PersistTiny(&disk_, order.staging(), 1, 1, order.generation());
  ASSERT_TRUE(reports.ok()) << reports.status();
  disk_.FailAt(disk_.calls(), absl::ResourceExhaustedError("no space left on device"));
  ASSERT_TRUE(core_->Handle(ShardsReported{"n1", "i", reports->front()}).ok());
  ExpectNote("step 1 was given up: ");
  EXPECT_EQ(Status().state(), RUNNING);
  EXPECT_EQ(Status().committed_step(), 0u);

  Persisted(Snapshot(2));
  while (Status().committed_step() != 2) std::this_thread::yield();
  EXPECT_EQ(Status().state(), RUNNING);
}

TEST_F(FullDiskTest, C11_AnAgentWithoutRoomGivesTheSaveUp) {
  const PersistSnapshot order = Snapshot(1);
  ShardsReported report{"n1", "i", {}};
  report.report.set_job(order.job());
  report.report.set_generation(order.generation());
  report.report.set_step(1);
  report.report.set_staging(order.staging());
  report.report.set_error("no space left on device");
  ASSERT_TRUE(core_->Handle(report).ok());
  ExpectNote("no space left on device");
  EXPECT_EQ(Status().state(), RUNNING);
  Persisted(Snapshot(2));
  while (Status().committed_step() != 2) std::this_thread::yield();
}

}  // namespace
}  // namespace moesaic
