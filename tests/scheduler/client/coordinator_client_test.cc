// The worker's connection when its coordinator dies, comes back on the same port, or moves on.
#include "scheduler/client/coordinator_client.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <functional>
#include <thread>

#include "base/mutex.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

// What a coordinator hears; it is there when its server dies.
struct Heard {
  Mutex mutex;
  CondVar changed;
  std::vector<StepReport> steps ABSL_GUARDED_BY(mutex);
  std::vector<uint64_t> snapshots ABSL_GUARDED_BY(mutex);
  int ready ABSL_GUARDED_BY(mutex) = 0;
};

class FakeCoordinator : private Coordinator::Service {
 public:
  FakeCoordinator(Heard* heard, Control control, int port = 0)
      : heard_(heard), control_(std::move(control)) {
    grpc::ServerBuilder builder;
    ConfigureServer(&builder);
    builder.AddListeningPort(fmt::format("127.0.0.1:{}", port), ServerCredentials(std::nullopt),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  // Calls that were heard are answered, so that none is made again; streams are cut.
  ~FakeCoordinator() override {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  }

  int port() const { return port_; }
  grpc::Status refusal;  // of progress, after its first report
  int ready_failures = 0;

 private:
  grpc::Status GetRankTable(grpc::ServerContext*, const WorkerIdentity* worker,
                            RankTable* table) override {
    table->set_generation(worker->generation());
    table->mutable_spec()->mutable_health()->set_orphan_grace(30);
    return grpc::Status::OK;
  }
  grpc::Status Ready(grpc::ServerContext*, const ReadyRequest*, ReadyReply*) override {
    MutexLock lock(&heard_->mutex);
    if (heard_->ready++ < ready_failures) return {grpc::StatusCode::UNAVAILABLE, "it restarts"};
    return grpc::Status::OK;
  }
  grpc::Status ReportSnapshot(grpc::ServerContext*, const SnapshotReport* report,
                              SnapshotReply*) override {
    MutexLock lock(&heard_->mutex);
    heard_->snapshots.push_back(report->step());
    heard_->changed.NotifyAll();
    return grpc::Status::OK;
  }
  grpc::Status Progress(grpc::ServerContext*,
                        grpc::ServerReaderWriter<Control, StepReport>* stream) override {
    StepReport report;
    while (stream->Read(&report)) {
      stream->Write(control_);
      if (!refusal.ok()) return refusal;
      MutexLock lock(&heard_->mutex);
      heard_->steps.push_back(report);
      heard_->changed.NotifyAll();
    }
    return grpc::Status::OK;
  }

  Heard* const heard_;
  const Control control_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class CoordinatorClientTest : public ::testing::Test {
 protected:
  CoordinatorClientTest() { Start(); }

  void Start(Control control = {}) {
    coordinator_ = std::make_unique<FakeCoordinator>(&heard_, std::move(control), port_);
    port_ = coordinator_->port();
  }
  // The old one is gone, and what it heard forgotten, before the new one is up.
  void Restart(Control control = {}) {
    coordinator_.reset();
    {
      MutexLock lock(&heard_.mutex);
      heard_.steps.clear();
      heard_.snapshots.clear();
    }
    Start(std::move(control));
  }
  std::unique_ptr<CoordinatorClient> Connect() const {
    CoordinatorAddress address;
    address.target = fmt::format("127.0.0.1:{}", port_);
    address.worker.set_generation(4);
    address.worker.set_incarnation("w");
    return ConnectToCoordinator(address);
  }
  static StepReport Step(uint64_t step) {
    StepReport report;
    report.set_step(step);
    report.mutable_metrics()->set_step(step);
    return report;
  }
  static SnapshotReport Snapshot(uint64_t step) {
    SnapshotReport report;
    report.set_step(step);
    return report;
  }
  static Control InMemory(uint64_t step) {
    Control control;
    control.set_memory_step(step);
    control.add_kept_steps(step);
    return control;
  }
  template <typename Condition>
  void WaitFor(const Condition& holds) {
    MutexLock lock(&heard_.mutex);
    while (!holds(heard_)) heard_.changed.Wait(&heard_.mutex);
  }
  void WaitForStep(uint64_t step) {
    WaitFor([step](const Heard& heard) ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return !heard.steps.empty() && heard.steps.back().step() == step;
    });
  }
  void WaitForSnapshot(uint64_t step) {
    WaitFor([step](const Heard& heard) ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return !heard.snapshots.empty() && heard.snapshots.back() == step;
    });
  }

  Heard heard_;
  int port_ = 0;
  std::unique_ptr<FakeCoordinator> coordinator_;
};

TEST_F(CoordinatorClientTest, TrainingGoesOnWithoutItsCoordinatorAndTheNewestReportArrives) {
  const auto client = Connect();
  ASSERT_TRUE(client->StartProgress().ok());
  client->Report(Step(1));
  WaitForStep(1);
  coordinator_.reset();
  constexpr uint64_t kSteps = 6000;  // more than are kept
  for (uint64_t step = 2; step <= kSteps; ++step) client->Report(Step(step));
  Restart();
  WaitForStep(kSteps);
  MutexLock lock(&heard_.mutex);
  EXPECT_LT(heard_.steps.size(), kSteps - 1);
  EXPECT_EQ(heard_.steps.back().worker().incarnation(), "w");
}

TEST_F(CoordinatorClientTest, ANewCoordinatorIsToldAtOnceWhoThisIs) {
  const auto client = Connect();
  ASSERT_TRUE(client->StartProgress().ok());
  client->Report(Step(7));
  WaitForStep(7);
  for (int restart = 0; restart < 2; ++restart) {
    Restart();
    WaitForStep(7);  // though nothing new was reported
    MutexLock lock(&heard_.mutex);
    EXPECT_FALSE(heard_.steps.back().has_metrics());  // they count once
  }
}

TEST_F(CoordinatorClientTest, ASnapshotInFlightIsReportedAgainAndOneInMemoryIsNot) {
  const auto client = Connect();
  ASSERT_TRUE(client->StartProgress().ok());
  client->Report(Step(10));
  client->ReportSnapshot(Snapshot(10));
  WaitForSnapshot(10);
  Restart(InMemory(5));
  WaitForSnapshot(10);
  coordinator_.reset();
  client->ReportSnapshot(Snapshot(20));  // does not wait
  Restart(InMemory(10));
  WaitForSnapshot(20);
  // A report may cross the news that it is in memory; the next coordinator hears nothing.
  for (int restart = 0; restart < 2; ++restart) {
    Restart(InMemory(20));
    while (client->LatestControl().memory_step() != 20) std::this_thread::yield();
    client->Report(Step(21 + restart));
    WaitForStep(21 + restart);
  }
  EXPECT_TRUE(client->FinishProgress().ok());
  MutexLock lock(&heard_.mutex);
  EXPECT_THAT(heard_.snapshots, ::testing::IsEmpty());
}

TEST_F(CoordinatorClientTest, CallsAreTriedAgainWhileItIsAway) {
  coordinator_.reset();
  const auto client = Connect();
  std::thread later([this] {
    Start();
  });
  const auto table = client->GetRankTable();
  later.join();
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->generation(), 4u);
  coordinator_->ready_failures = 1;
  EXPECT_TRUE(client->Ready(ReadyRequest(), absl::Seconds(20)).ok());
  MutexLock lock(&heard_.mutex);
  EXPECT_EQ(heard_.ready, 2);
}

TEST_F(CoordinatorClientTest, M2_AStaleWorkerIsToldToStop) {
  const auto client = Connect();
  coordinator_->refusal = {grpc::StatusCode::FAILED_PRECONDITION, "stale generation"};
  ASSERT_TRUE(client->StartProgress().ok());
  client->Report(Step(1));
  while (!client->LatestControl().abort()) std::this_thread::yield();
  EXPECT_TRUE(absl::IsFailedPrecondition(client->FinishProgress()));
}

}  // namespace
}  // namespace moesaic
