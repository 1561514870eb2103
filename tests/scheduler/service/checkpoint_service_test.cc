// The checkpoint service over real gRPC on loopback: who may commit, and what people can do.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "proto/checkpoint_service.grpc.pb.h"
#include "scheduler/client/channel.h"
#include "scheduler/service/server.h"
#include "tests/scheduler/service/cluster_of_one.h"
#include "tests/trainer/checkpoint/tiny_job.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

class CheckpointServiceTest : public ClusterOfOne {
 protected:
  void SetUp() override {
    ClusterOfOne::SetUp();
    stub_ = Checkpoints::NewStub(OpenCoordinatorChannel(server_->address()));
    start_ = StartJob(Spec());
  }
  JobSpec Spec() const {
    JobSpec spec = TinyJob();
    spec.mutable_elastic()->mutable_nodes()->set_min(1);
    spec.mutable_elastic()->mutable_nodes()->set_max(1);
    spec.mutable_elastic()->set_slots_per_node(1);
    spec.mutable_run()->set_dir(dir_);
    spec.mutable_checkpoint()->set_dir(dir_ + "/checkpoints");
    return spec;
  }
  WorkerIdentity Writer() const {
    WorkerIdentity writer;
    writer.set_job(start_.job());
    writer.set_generation(start_.generation());
    writer.set_token(start_.token());
    return writer;
  }
  absl::StatusOr<std::string> Begin(const WorkerIdentity& writer, uint64_t step) {
    grpc::ClientContext context;
    BeginCheckpointRequest request;
    *request.mutable_writer() = writer;
    request.set_step(step);
    request.set_ranks(2);
    BeginCheckpointReply reply;
    const absl::Status status = FromGrpc(stub_->Begin(&context, request, &reply));
    if (!status.ok()) return status;
    return reply.staging();
  }
  absl::Status Report(const ShardsPersisted& shards) {
    grpc::ClientContext context;
    ReportShardsReply reply;
    return FromGrpc(stub_->Report(&context, shards, &reply));
  }
  absl::StatusOr<CheckpointEntry> Commit(const WorkerIdentity& writer, uint64_t step,
                                         const std::string& staging) {
    grpc::ClientContext context;
    CommitCheckpointRequest request;
    *request.mutable_writer() = writer;
    request.set_step(step);
    request.set_staging(staging);
    CheckpointEntry entry;
    const absl::Status status = FromGrpc(stub_->Commit(&context, request, &entry));
    if (!status.ok()) return status;
    return entry;
  }
  std::vector<ShardsPersisted> Persist(const std::string& staging, uint64_t step) {
    return *PersistTiny(&FileSystem::System(), staging, 2, step, start_.generation());
  }
  PersistSnapshot WaitForPersist() {
    while (true) {
      for (const AgentCommand& command : agent_->messages()) {
        if (command.has_persist()) return command.persist();
      }
      std::this_thread::yield();
    }
  }
  ListCheckpointsReply List() {
    grpc::ClientContext context;
    ListCheckpointsRequest request;
    request.set_job(start_.job());
    ListCheckpointsReply reply;
    EXPECT_TRUE(stub_->List(&context, request, &reply).ok());
    return reply;
  }

  std::unique_ptr<Checkpoints::Stub> stub_;
  StartGeneration start_;
};

TEST_F(CheckpointServiceTest, WhatTheCurrentGenerationSavesIsCommittedAndListed) {
  const auto staging = Begin(Writer(), 7);
  ASSERT_TRUE(staging.ok()) << staging.status();
  for (const ShardsPersisted& shards : Persist(*staging, 7)) ASSERT_TRUE(Report(shards).ok());
  const auto entry = Commit(Writer(), 7, *staging);
  ASSERT_TRUE(entry.ok()) << entry.status();
  EXPECT_EQ(entry->step(), 7u);
  EXPECT_EQ(List().checkpoints_size(), 1);
  // Once only.
  EXPECT_TRUE(absl::IsFailedPrecondition(Commit(Writer(), 7, *staging).status()));
}

// The coordinator died between the rename that commits a step and its record of it.
TEST_F(CheckpointServiceTest, C1_ACommitThatWasNotRecordedIsFoundAtARestart) {
  stub_.reset();
  StopServer();
  {
    const auto root = *CheckpointRoot::Open(&FileSystem::System(), Spec().checkpoint().dir());
    ASSERT_TRUE(CommitTiny(&FileSystem::System(), root.get(), 2, 7, start_.generation()).ok());
  }
  StartServer("127.0.0.1:0");
  stub_ = Checkpoints::NewStub(OpenCoordinatorChannel(server_->address()));
  ASSERT_EQ(core_->GetJob("tiny")->committed_step(), 0u);
  JoinAgent();
  const StartGeneration next = WaitForStart();
  EXPECT_GT(next.generation(), start_.generation());
  EXPECT_THAT(core_->LiveRankTable("tiny")->restore_path(), HasSubstr("step-000000007"));
  EXPECT_EQ(core_->GetJob("tiny")->committed_step(), 7u);
  EXPECT_EQ(List().checkpoints_size(), 1);
}

TEST_F(CheckpointServiceTest, C7_AnotherGenerationCannotBegin) {
  WorkerIdentity stale = Writer();
  stale.set_generation(start_.generation() + 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(Begin(stale, 7).status()));
  WorkerIdentity guessed = Writer();
  guessed.set_token("guess");
  EXPECT_TRUE(absl::IsPermissionDenied(Begin(guessed, 7).status()));
}

TEST_F(CheckpointServiceTest, C7_AGenerationThatIsOverCanNeitherReportNorCommit) {
  const auto staging = Begin(Writer(), 7);
  ASSERT_TRUE(staging.ok()) << staging.status();
  const std::vector<ShardsPersisted> shards = Persist(*staging, 7);
  ASSERT_TRUE(Report(shards[0]).ok());
  EndGeneration(start_, 137);
  const absl::Status late = Report(shards[1]);
  EXPECT_TRUE(absl::IsFailedPrecondition(late)) << late;
  EXPECT_THAT(late.message(), HasSubstr("stale"));
  EXPECT_TRUE(absl::IsFailedPrecondition(Commit(Writer(), 7, *staging).status()));
  EXPECT_EQ(List().checkpoints_size(), 0);
}

TEST_F(CheckpointServiceTest, ASaveWithAHoleIsNotCommitted) {
  const auto staging = Begin(Writer(), 7);
  ASSERT_TRUE(staging.ok());
  ASSERT_TRUE(Report(Persist(*staging, 7)[0]).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(Commit(Writer(), 7, *staging).status()));
  EXPECT_EQ(List().checkpoints_size(), 0);
  EXPECT_FALSE(std::filesystem::exists(*staging));
}

TEST_F(CheckpointServiceTest, WhatAWriterOfTheRunCommitsIsTheJobs) {
  const auto save = [&](uint64_t step) {
    const auto staging = Begin(Writer(), step);
    ASSERT_TRUE(staging.ok()) << staging.status();
    for (const ShardsPersisted& shards : Persist(*staging, step)) ASSERT_TRUE(Report(shards).ok());
    ASSERT_TRUE(Commit(Writer(), step, *staging).ok());
  };
  save(7);
  EXPECT_EQ(core_->GetJob(start_.job())->committed_step(), 7u);
  EXPECT_EQ(core_->GetJob(start_.job())->committed_path(), List().checkpoints(0).path());
  save(5);  // comes late
  EXPECT_EQ(core_->GetJob(start_.job())->committed_step(), 7u);
  EXPECT_EQ(List().checkpoints_size(), 2);
  EXPECT_TRUE(absl::IsInvalidArgument(Begin(Writer(), Spec().train().steps() + 1).status()));
}

TEST_F(CheckpointServiceTest, ASaveThatAnAgentReportsAsFailedIsGivenUpOnce) {
  std::vector<CheckpointEvent> events;
  Mutex mutex;
  const uint64_t watch = core_->archive().Watch([&](const CheckpointEvent& event) {
    MutexLock lock(&mutex);
    events.push_back(event);
  });
  const uint64_t step = Spec().train().steps();
  SnapshotReported copied;
  *copied.report.mutable_worker() = Writer();
  copied.report.set_step(step);
  *copied.report.mutable_state() = TinyState(step);
  ASSERT_TRUE(core_->Handle(copied).ok());
  ShardsReported failed{"n1", "i", {}};
  failed.report.set_staging(WaitForPersist().staging());
  failed.report.set_job(start_.job());
  failed.report.set_generation(start_.generation());
  failed.report.set_step(step);
  failed.report.set_error("no space left");
  ASSERT_TRUE(core_->Handle(failed).ok());
  core_->archive().Unwatch(watch);
  MutexLock lock(&mutex);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind(), CheckpointEvent::GIVEN_UP);
  EXPECT_EQ(events[0].checkpoint().step(), step);
  EXPECT_THAT(events[0].detail(), HasSubstr("no space left"));
}

TEST_F(CheckpointServiceTest, PeoplePinVerifyDeleteAndWatch) {
  grpc::ClientContext watching;
  ListCheckpointsRequest all;
  const auto watch = stub_->Watch(&watching, all);
  const auto staging = Begin(Writer(), 7);
  for (const ShardsPersisted& shards : Persist(*staging, 7)) ASSERT_TRUE(Report(shards).ok());
  ASSERT_TRUE(Commit(Writer(), 7, *staging).ok());

  CheckpointRef ref;
  ref.set_job(start_.job());
  grpc::ClientContext verifying;
  const auto progress = stub_->Verify(&verifying, ref);
  VerifyProgress last;
  while (progress->Read(&last)) continue;
  EXPECT_TRUE(progress->Finish().ok());
  EXPECT_TRUE(last.finished());
  EXPECT_EQ(last.problems_size(), 0);

  PinCheckpointRequest pin;
  *pin.mutable_checkpoint() = ref;
  grpc::ClientContext pinning;
  CheckpointEntry entry;
  ASSERT_TRUE(stub_->Pin(&pinning, pin, &entry).ok());
  EXPECT_TRUE(entry.pinned());
  EXPECT_NE(entry.verified_unix_ns(), 0);

  DeleteCheckpointRequest remove;
  *remove.mutable_checkpoint() = ref;
  grpc::ClientContext removing;
  DeleteCheckpointReply reply;
  EXPECT_EQ(stub_->Delete(&removing, remove, &reply).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);

  // The watch may have begun after the commit.
  CheckpointEvent event;
  while (watch->Read(&event) && event.kind() != CheckpointEvent::PINNED) continue;
  EXPECT_EQ(event.checkpoint().step(), 7u);
  watching.TryCancel();
  watch->Finish();
}

}  // namespace
}  // namespace moesaic
