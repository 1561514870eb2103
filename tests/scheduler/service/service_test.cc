// The service over real gRPC on loopback, with agents and workers played by the test and a clock
// that stands still until it is moved.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "proto/coordinator.grpc.pb.h"
#include "scheduler/client/channel.h"
#include "scheduler/client/coordinator_client.h"
#include "scheduler/service/server.h"
#include "tests/base/scratch_folder.h"
#include "tests/scheduler/state/cluster_fixture.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

class HandClock : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixSeconds(seconds_.load()); }
  void Advance(int64_t seconds) { seconds_ += seconds; }

 private:
  std::atomic<int64_t> seconds_{1000};
};

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override { StartServer(); }
  void TearDown() override { StopServer(); }

  void StartServer() {
    CoordinatorOptions options;
    options.cluster.join_wait = absl::ZeroDuration();
    options.store_path = dir_ + "/coordinator.sqlite";
    options.tick = tick_;
    options.clock = &clock_;
    auto core = CoordinatorCore::Open(options);
    ASSERT_TRUE(core.ok()) << core.status();
    core_ = *std::move(core);
    ServerOptions serving;
    serving.submissions = submissions_;
    auto server = CoordinatorServer::Start(core_.get(), serving);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = Coordinator::NewStub(OpenCoordinatorChannel(server_->address()));
  }
  void StopServer() {
    stub_.reset();
    server_.reset();
    core_.reset();
  }

  JobSpec Spec() const {
    JobSpec spec = SmallJob("a", 1, 1, 2);
    spec.mutable_checkpoint()->set_dir(dir_ + "/checkpoints");
    spec.mutable_run()->set_dir(dir_);
    return spec;
  }
  absl::Status Submit(const std::string& resume = "auto", const std::string& name = "a") {
    grpc::ClientContext context;
    SubmitJobRequest request;
    *request.mutable_spec() = Spec();
    request.mutable_spec()->set_name(name);
    request.set_resume(resume);
    SubmitJobReply reply;
    return FromGrpc(stub_->SubmitJob(&context, request, &reply));
  }

  using Session = grpc::ClientReaderWriter<AgentMessage, AgentCommand>;
  std::unique_ptr<Session> Join(grpc::ClientContext* context,
                                const std::string& incarnation = "i") {
    auto session = stub_->AgentSession(context);
    AgentMessage message = From(incarnation);
    message.mutable_registration()->set_slots(2);
    message.mutable_registration()->set_cores(2);
    message.mutable_registration()->set_host("localhost");
    message.mutable_registration()->set_arena_dir(dir_);
    EXPECT_TRUE(session->Write(message));
    return session;
  }
  static AgentMessage From(const std::string& incarnation) {
    AgentMessage message;
    message.set_agent("n1");
    message.set_incarnation(incarnation);
    return message;
  }
  static AgentCommand Next(Session* session) {
    AgentCommand command;
    EXPECT_TRUE(session->Read(&command));
    return command;
  }
  std::unique_ptr<CoordinatorClient> Worker(const StartGeneration& start, uint32_t rank) const {
    CoordinatorAddress address;
    address.target = server_->address();
    address.worker.set_job(start.job());
    address.worker.set_generation(start.generation());
    address.worker.set_token(start.token());
    address.worker.set_rank(rank);
    address.worker.set_incarnation("w" + std::to_string(rank));
    return ConnectToCoordinator(address);
  }

  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  HandClock clock_;
  SubmissionLimits submissions_;
  absl::Duration tick_ = absl::ZeroDuration();
  std::unique_ptr<CoordinatorCore> core_;
  std::unique_ptr<CoordinatorServer> server_;
  std::unique_ptr<Coordinator::Stub> stub_;
};

TEST_F(ServiceTest, ATickThatComesLateExtendsTheLeasesByAsMuch) {
  StopServer();
  tick_ = absl::Milliseconds(5);
  StartServer();
  grpc::ClientContext context;
  const auto session = Join(&context);
  ASSERT_TRUE(Next(session.get()).has_welcome());
  clock_.Advance(60);  // as if nothing had run for a minute
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  std::vector<NodeStatus> nodes;
  do {
    absl::SleepFor(absl::Milliseconds(5));
    nodes = core_->ListNodes();
    ASSERT_EQ(nodes.size(), 1);
  } while (nodes[0].lease_age_seconds() > 1 && absl::Now() < deadline);
  EXPECT_LE(nodes[0].lease_age_seconds(), 1);
  context.TryCancel();
}

TEST_F(ServiceTest, AClientThatSubmitsTooOftenIsToldWhenToTryAgain) {
  StopServer();
  submissions_ = {.per_minute = 6, .burst = 2, .live_jobs = 2};
  StartServer();
  ASSERT_TRUE(Submit().ok());
  EXPECT_FALSE(absl::IsResourceExhausted(Submit()));  // of that name there is one already
  const absl::Status often = Submit();
  EXPECT_TRUE(absl::IsResourceExhausted(often)) << often;
  EXPECT_THAT(often.message(), HasSubstr("127.0.0.1 submits too often"));
  EXPECT_THAT(often.message(), HasSubstr("try again in 10 s"));
  clock_.Advance(10);
  EXPECT_TRUE(Submit("auto", "b").ok());
  clock_.Advance(60);
  const absl::Status many = Submit("auto", "c");
  EXPECT_TRUE(absl::IsResourceExhausted(many)) << many;
  EXPECT_THAT(many.message(), HasSubstr("2 jobs have not ended"));
}

TEST_F(ServiceTest, ListensOnLoopbackOnly) {
  EXPECT_EQ(server_->address().rfind("127.0.0.1:", 0), 0u);
}

TEST_F(ServiceTest, StartsAGenerationAndLetsItsRanksMeet) {
  grpc::ClientContext context;
  const auto agent = Join(&context);
  EXPECT_TRUE(Next(agent.get()).has_welcome());
  ASSERT_TRUE(Submit().ok());
  const AgentCommand command = Next(agent.get());
  ASSERT_TRUE(command.has_start());
  EXPECT_EQ(command.start().ranks(), 2u);
  EXPECT_EQ(command.start().token().size(), 32u);

  const auto first = Worker(command.start(), 0);
  const auto second = Worker(command.start(), 1);
  const auto table = first->GetRankTable();
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->ranks(1).arena_path(), dir_ + "/a/g1-r1");
  absl::Status answer;
  std::thread waiting([&] { answer = first->Ready(ReadyRequest(), absl::Seconds(30)); });
  EXPECT_TRUE(second->Ready(ReadyRequest(), absl::Seconds(30)).ok());
  waiting.join();
  EXPECT_TRUE(answer.ok()) << answer;
  EXPECT_EQ(core_->GetJob("a")->state(), RUNNING);

  // The control word reaches the ranks.
  ASSERT_TRUE(first->StartProgress().ok());
  StepReport report;
  report.set_step(1);
  first->Report(report);
  grpc::ClientContext stop;
  StopJobRequest request;
  request.set_job("a");
  StopJobReply reply;
  EXPECT_TRUE(stub_->StopJob(&stop, request, &reply).ok());
  while (!first->LatestControl().stop()) std::this_thread::yield();
  EXPECT_TRUE(first->FinishProgress().ok());
}

TEST_F(ServiceTest, M2StaleWorkerIsRefusedOnEveryCall) {
  grpc::ClientContext context;
  const auto agent = Join(&context);
  Next(agent.get());
  ASSERT_TRUE(Submit().ok());
  StartGeneration start = Next(agent.get()).start();
  StartGeneration stale = start;
  stale.set_generation(7);
  const auto old = Worker(stale, 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(old->GetRankTable().status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(old->Ready(ReadyRequest(), absl::Seconds(5))));
  old->ReportSnapshot(SnapshotReport());
  while (!old->LatestControl().abort()) std::this_thread::yield();
  const auto other = Worker(stale, 0);
  ASSERT_TRUE(other->StartProgress().ok());
  other->Report(StepReport());
  while (!other->LatestControl().abort()) std::this_thread::yield();
  EXPECT_TRUE(absl::IsFailedPrecondition(other->FinishProgress()));
  start.set_token("guess");
  EXPECT_TRUE(absl::IsPermissionDenied(Worker(start, 0)->GetRankTable().status()));
}

TEST_F(ServiceTest, ClosedStreamIsALostNode) {
  {
    grpc::ClientContext context;
    const auto agent = Join(&context);
    Next(agent.get());
    ASSERT_TRUE(Submit().ok());
    Next(agent.get());
    context.TryCancel();
    EXPECT_FALSE(agent->Finish().ok());
  }
  while (core_->GetJob("a")->state() != WAITING) std::this_thread::yield();
  EXPECT_THAT(core_->GetJob("a")->last_failure(), ::testing::HasSubstr("node n1 was lost"));
}

TEST_F(ServiceTest, SilentAgentLosesItsLeaseAndIsTurnedAway) {
  grpc::ClientContext context;
  const auto agent = Join(&context);
  Next(agent.get());
  clock_.Advance(6);
  ASSERT_TRUE(core_->Handle(Tick{}).ok());
  AgentMessage renewal = From("i");
  renewal.mutable_renewal();
  agent->Write(renewal);
  AgentCommand command;
  EXPECT_FALSE(agent->Read(&command));
  EXPECT_EQ(agent->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(ServiceTest, RestartReplaysTheStoreAndNeverReusesANumber) {
  {
    grpc::ClientContext context;
    const auto agent = Join(&context);
    Next(agent.get());
    ASSERT_TRUE(Submit().ok());
    EXPECT_EQ(Next(agent.get()).start().generation(), 1u);
    StopServer();
    agent->Finish();
  }
  StartServer();
  EXPECT_EQ(core_->GetJob("a")->generation(), 1u);
  EXPECT_EQ(core_->GetJob("a")->state(), ABORTING) << "it was not ready: it is not adopted";
  grpc::ClientContext context;
  const auto agent = Join(&context, "another");
  Next(agent.get());
  EXPECT_EQ(Next(agent.get()).start().generation(), 2u);
}

TEST_F(ServiceTest, WatcherSeesAllEventsOnceAndTheEnd) {
  grpc::ClientContext context;
  const auto agent = Join(&context);
  Next(agent.get());
  ASSERT_TRUE(Submit().ok());
  Next(agent.get());
  grpc::ClientContext watch;
  WatchJobRequest request;
  request.set_job("a");
  const auto stream = stub_->WatchJob(&watch, request);
  JobEvent event;
  ASSERT_TRUE(stream->Read(&event));
  ASSERT_TRUE(core_->Handle(StopRequested{"a", true}).ok());
  EXPECT_TRUE(Next(agent.get()).has_kill());
  AgentMessage ended = From("i");
  ended.mutable_ended()->set_job("a");
  ended.mutable_ended()->set_generation(1);
  ended.mutable_ended()->set_exit_code(137);
  agent->Write(ended);
  uint64_t sequence = event.sequence();
  JobState last = QUEUED;
  while (stream->Read(&event)) {
    EXPECT_EQ(event.sequence(), sequence + 1);
    sequence = event.sequence();
    if (event.has_status()) last = event.status().state();
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(last, CANCELLED);
}

TEST_F(ServiceTest, UnknownJobIsNotFound) {
  grpc::ClientContext context;
  JobRef ref;
  ref.set_job("nobody");
  JobStatus status;
  EXPECT_EQ(stub_->GetJob(&context, ref, &status).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, ResumeFromAStepThatIsNotThereIsExit3) {
  grpc::ClientContext context;
  const auto agent = Join(&context);
  Next(agent.get());
  ASSERT_TRUE(Submit("40").ok());
  while (!HasEnded(core_->GetJob("a")->state())) std::this_thread::yield();
  EXPECT_EQ(core_->GetJob("a")->exit_code(), 3);
}

}  // namespace
}  // namespace moesaic
