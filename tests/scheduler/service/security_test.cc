// The edge over real sockets: who gets in, and what each may call.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <set>

#include "proto/checkpoint_service.pb.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/certs/certificate.h"
#include "scheduler/client/channel.h"
#include "scheduler/service/server.h"
#include "scheduler/service/submission.h"
#include "tests/base/scratch_folder.h"
#include "tests/scheduler/certs/test_certificates.h"
#include "tests/scheduler/state/cluster_fixture.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kDeadline = absl::Seconds(10);
constexpr char kWrongRole[] = "takes the certificate of";

class SecurityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    CoordinatorOptions options;
    options.store_path = dir_ + "/coordinator.sqlite";
    options.cluster.join_wait = absl::ZeroDuration();
    auto core = CoordinatorCore::Open(options);
    ASSERT_TRUE(core.ok()) << core.status();
    core_ = *std::move(core);
    StartServer(certificates_.Of(ROLE_COORDINATOR));
  }
  void TearDown() override {
    server_.reset();
    core_.reset();
  }
  void StartServer(std::optional<TlsIdentity> tls) {
    ServerOptions options;
    options.tls = std::move(tls);
    options.queue_limits = limits_;
    auto server = CoordinatorServer::Start(core_.get(), options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::shared_ptr<grpc::Channel> Channel(const std::optional<TlsIdentity>& tls) const {
    return OpenCoordinatorChannel(server_->address(), tls);
  }
  // Asks for a job that there is not: NotFound once the call gets through.
  absl::Status Ask(const std::optional<TlsIdentity>& tls) const {
    grpc::ClientContext context;
    SetDeadline(&context, kDeadline);
    JobStatus status;
    return FromGrpc(Coordinator::NewStub(Channel(tls))->GetJob(&context, JobRef(), &status));
  }

  JobSpec Spec(const std::string& name) const {
    JobSpec spec = SmallJob(name, 1, 1, 1);
    spec.mutable_checkpoint()->set_dir(dir_ + "/checkpoints");
    spec.mutable_run()->set_dir(dir_);
    return spec;
  }
  absl::Status Submit(const SubmitJobRequest& request) const {
    grpc::ClientContext context;
    SetDeadline(&context, kDeadline);
    SubmitJobReply reply;
    const auto stub = Coordinator::NewStub(Channel(certificates_.Of(ROLE_CLI)));
    return FromGrpc(stub->SubmitJob(&context, request, &reply));
  }
  absl::Status Submit(const std::string& name) const {
    SubmitJobRequest request;
    *request.mutable_spec() = Spec(name);
    return Submit(request);
  }

  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  QueueLimits limits_;
  TestCertificates certificates_;
  std::unique_ptr<CoordinatorCore> core_;
  std::unique_ptr<CoordinatorServer> server_;
};

// Any method, with an empty message.
absl::Status Call(const std::shared_ptr<grpc::Channel>& channel, const std::string& path) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  SetDeadline(&context, kDeadline);
  grpc::Slice nothing;
  grpc::ByteBuffer request(&nothing, 1);
  grpc::CompletionQueue queue;
  const auto stream = stub.PrepareCall(&context, path, &queue);
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  stream->StartCall(nullptr);
  grpc::ByteBuffer reply;
  if (wait()) {
    stream->WriteLast(request, grpc::WriteOptions(), nullptr);
    wait();
    do stream->Read(&reply, nullptr);
    while (wait());
  }
  grpc::Status status;
  stream->Finish(&status, nullptr);
  wait();
  return FromGrpc(status);
}

std::vector<const google::protobuf::MethodDescriptor*> AllMethods() {
  std::vector<const google::protobuf::MethodDescriptor*> methods;
  for (const auto* file : {JobRef::descriptor()->file(), AgentMessage::descriptor()->file(),
                           CheckpointRef::descriptor()->file()}) {
    const auto* service = file->service(0);
    for (int i = 0; i < service->method_count(); ++i) methods.push_back(service->method(i));
  }
  return methods;
}

std::string PathOf(const google::protobuf::MethodDescriptor& method) {
  return "/" + method.service()->full_name() + "/" + method.name();
}

TEST(Callers, EveryMethodOfEveryServiceNamesThem) {
  for (const auto* method : AllMethods()) {
    EXPECT_GT(method->options().ExtensionSize(callers), 0)
        << method->full_name() << " has no option (callers)";
    EXPECT_FALSE(CheckCaller(PathOf(*method), ROLE_NONE).ok());
  }
  EXPECT_TRUE(absl::IsPermissionDenied(CheckCaller("/moesaic.Coordinator/None", ROLE_CLI)));
  EXPECT_TRUE(absl::IsPermissionDenied(CheckCaller("", ROLE_CLI)));
  EXPECT_TRUE(absl::IsPermissionDenied(CheckCaller("/moesaic.JobSpec/name", ROLE_CLI)));
}

TEST_F(SecurityTest, WrongRoleIsRefusedOnEveryMethod) {
  std::map<Role, std::shared_ptr<grpc::Channel>> channels;
  for (const Role role : {ROLE_CLI, ROLE_AGENT, ROLE_WORKER, ROLE_COORDINATOR}) {
    channels[role] = Channel(certificates_.Of(role));
  }
  for (const auto* method : AllMethods()) {
    std::set<Role> allowed;
    for (int i = 0; i < method->options().ExtensionSize(callers); ++i) {
      allowed.insert(method->options().GetExtension(callers, i));
    }
    for (const auto& [role, channel] : channels) {
      const absl::Status status = Call(channel, PathOf(*method));
      const std::string message(status.message());
      if (allowed.contains(role)) {
        EXPECT_THAT(message, ::testing::Not(HasSubstr(kWrongRole)))
            << method->full_name() << " by " << RoleName(role);
      } else {
        EXPECT_TRUE(absl::IsPermissionDenied(status))
            << method->full_name() << " by " << RoleName(role) << ": " << status;
        EXPECT_THAT(message, HasSubstr(kWrongRole));
      }
    }
  }
  EXPECT_TRUE(absl::IsPermissionDenied(Call(channels[ROLE_CLI], "/moesaic.Coordinator/None")));
}

TEST_F(SecurityTest, CertificateOfTheRightRoleGetsIn) {
  EXPECT_TRUE(absl::IsNotFound(Ask(certificates_.Of(ROLE_CLI)))) << Ask(certificates_.Of(ROLE_CLI));
}

TEST_F(SecurityTest, PlaintextClientIsRefused) {
  EXPECT_TRUE(absl::IsUnavailable(Ask(std::nullopt))) << Ask(std::nullopt);
}

TEST_F(SecurityTest, ClientOfAnotherAuthorityIsRefusedByTheServer) {
  TlsIdentity foreign = TestCertificates().Of(ROLE_CLI);
  EXPECT_TRUE(absl::IsUnavailable(Ask(foreign)));  // it does not trust the server
  foreign.ca = certificates_.Of(ROLE_CLI).ca;
  EXPECT_TRUE(absl::IsUnavailable(Ask(foreign)));  // the server does not trust it
}

TEST_F(SecurityTest, ClientWithoutACertificateIsRefused) {
  TlsIdentity nobody;
  nobody.ca = certificates_.Of(ROLE_CLI).ca;
  EXPECT_TRUE(absl::IsUnavailable(Ask(nobody)));
}

TEST_F(SecurityTest, ExpiredCertificatesAreRefusedByBothEnds) {
  EXPECT_TRUE(absl::IsUnavailable(Ask(certificates_.Of(ROLE_CLI, "", -absl::Hours(1)))));
  server_.reset();
  StartServer(certificates_.Of(ROLE_COORDINATOR, "", -absl::Hours(1)));
  EXPECT_TRUE(absl::IsUnavailable(Ask(certificates_.Of(ROLE_CLI))));
}

TEST_F(SecurityTest, ServerThatIsNoCoordinatorIsNotBelieved) {
  server_.reset();
  StartServer(certificates_.Of(ROLE_AGENT));
  EXPECT_TRUE(absl::IsUnavailable(Ask(certificates_.Of(ROLE_CLI))));
}

absl::Status Register(const std::shared_ptr<grpc::Channel>& channel, const std::string& node) {
  const auto stub = Coordinator::NewStub(channel);
  grpc::ClientContext context;
  SetDeadline(&context, kDeadline);
  const auto session = stub->AgentSession(&context);
  AgentMessage message;
  message.set_agent(node);
  message.set_incarnation("i");
  message.mutable_registration()->set_slots(1);
  message.mutable_registration()->set_cores(1);
  message.mutable_registration()->set_host("localhost");
  message.mutable_registration()->set_arena_dir("/dev/shm/x");
  session->Write(message);
  AgentCommand command;
  if (session->Read(&command)) return absl::OkStatus();
  return FromGrpc(session->Finish());
}

TEST_F(SecurityTest, AgentIsTheNodeThatItsCertificateIsBoundTo) {
  const auto bound = Channel(certificates_.Of(ROLE_AGENT, "n1"));
  EXPECT_TRUE(Register(bound, "n1").ok());
  const absl::Status refused = Register(bound, "n2");
  EXPECT_TRUE(absl::IsPermissionDenied(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("is of node n1, not of n2"));
  EXPECT_TRUE(Register(Channel(certificates_.Of(ROLE_AGENT)), "n3").ok());
}

TEST_F(SecurityTest, NodesWithBadNamesAreRefused) {
  const auto agent = Channel(certificates_.Of(ROLE_AGENT));
  for (const char* name : {"", "..", "a/b", "../n1", "/n1", "N1", "n1\x1b[2J", "a..b"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Register(agent, name))) << name;
  }
}

TEST_F(SecurityTest, PlaintextOffLoopbackNeedsInsecure) {
  ServerOptions options;
  options.listen = "0.0.0.0:0";
  const auto refused = CoordinatorServer::Start(core_.get(), options);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status()));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--insecure"));
  options.insecure = true;
  EXPECT_TRUE(CoordinatorServer::Start(core_.get(), options).ok());
}

TEST_F(SecurityTest, TlsServesAllAddresses) {
  server_.reset();
  ServerOptions options;
  options.listen = "0.0.0.0:0";
  options.tls = certificates_.Of(ROLE_COORDINATOR);
  auto server = CoordinatorServer::Start(core_.get(), options);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  EXPECT_TRUE(absl::IsNotFound(Ask(certificates_.Of(ROLE_CLI))));
}

// ---- Limits.

TEST_F(SecurityTest, OversizedMessagesAreRefused) {
  SubmitJobRequest request;
  *request.mutable_spec() = Spec("a");
  request.mutable_spec()->mutable_data()->mutable_tokenizer()->assign(kMaxMessageBytes, 'x');
  // By this end, by an end that does not care, and, below the limit of messages, by that of jobs.
  EXPECT_TRUE(absl::IsResourceExhausted(Submit(request)));
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetSslTargetNameOverride(ServerName(ROLE_COORDINATOR));
  const auto stub = Coordinator::NewStub(grpc::CreateCustomChannel(
      server_->address(), ClientCredentials(certificates_.Of(ROLE_CLI)), arguments));
  grpc::ClientContext context;
  SetDeadline(&context, kDeadline);
  SubmitJobReply reply;
  EXPECT_EQ(stub->SubmitJob(&context, request, &reply).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  request.mutable_spec()->mutable_data()->mutable_tokenizer()->resize(kMaxSpecBytes);
  EXPECT_TRUE(absl::IsInvalidArgument(Submit(request)));
  EXPECT_TRUE(absl::IsNotFound(core_->GetJob("a").status()));
}

TEST_F(SecurityTest, JobsThatAreNotValidAreRefused) {
  for (const char* name : {"", "..", "../a", "/a", "a/b", "a..b", "A", "a\x1b[2J"}) {
    const absl::Status status = Submit(name);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << name;
    EXPECT_THAT(std::string(status.message()), ::testing::Not(HasSubstr("\x1b")));
  }
  SubmitJobRequest request;
  *request.mutable_spec() = Spec("a");
  request.set_resume("../../step");
  EXPECT_TRUE(absl::IsInvalidArgument(Submit(request)));
  request.set_resume("auto");
  request.mutable_spec()->mutable_train()->set_micro_batch(0);
  EXPECT_TRUE(absl::IsInvalidArgument(Submit(request)));
  EXPECT_TRUE(Submit("a").ok());
}

class SlowReaderTest : public SecurityTest {
 protected:
  // An agent that registers, and then reads no more.
  void RunSlowAgent() {
    const auto stub = Coordinator::NewStub(Channel(certificates_.Of(ROLE_AGENT)));
    grpc::ClientContext context;
    SetDeadline(&context, absl::Seconds(30));
    const auto session = stub->AgentSession(&context);
    AgentMessage message;
    message.set_agent("n1");
    message.set_incarnation("i");
    message.mutable_registration()->set_slots(1);
    message.mutable_registration()->set_cores(1);
    message.mutable_registration()->set_host("localhost");
    message.mutable_registration()->set_arena_dir(dir_);
    ASSERT_TRUE(session->Write(message));
    const std::string job(63, 'j');
    AgentCommand command;
    ASSERT_TRUE(session->Read(&command));
    ASSERT_TRUE(Submit(job).ok());
    ASSERT_TRUE(session->Read(&command));
    ASSERT_TRUE(command.has_start());
    // More than the windows of the connection hold: each asks to kill the generation once more. The
    // job goes on only when its node is lost.
    for (int i = 0; i < 200'000 && core_->GetJob(job)->state() != CANCELLED; ++i) {
      ASSERT_TRUE(core_->Handle(StopRequested{job, true}).ok());
    }
    EXPECT_EQ(core_->GetJob(job)->state(), CANCELLED);
    while (session->Read(&command)) {
    }
    EXPECT_FALSE(session->Finish().ok());
  }
};

struct FewMessages : SlowReaderTest {
  FewMessages() { limits_.messages = 1000; }
};
TEST_F(FewMessages, SlowReaderIsCutOff) { RunSlowAgent(); }

struct FewBytes : SlowReaderTest {
  FewBytes() { limits_.bytes = 100'000; }
};
TEST_F(FewBytes, SlowReaderIsCutOff) { RunSlowAgent(); }

// ---- Tokens.

TEST(Tokens, ReplayedTokensOfAnOldGenerationAreRefused) {
  ClusterFixture cluster;
  ASSERT_TRUE(cluster.Join("n1", 1).ok());
  ASSERT_TRUE(cluster.Do(JobSubmitted{SmallJob("a", 1, 1, 1), "auto"}).ok());
  cluster.Live(absl::Seconds(5));
  ASSERT_TRUE(cluster.Restore("a").ok());
  const WorkerIdentity old = cluster.Worker("a", 0);
  cluster.AllReady("a");
  ASSERT_TRUE(cluster.End("a", "n1", 137).ok());
  cluster.Live(absl::Minutes(2));
  ASSERT_TRUE(cluster.Restore("a").ok());
  const WorkerIdentity now = cluster.Worker("a", 0);
  ASSERT_EQ(now.generation(), old.generation() + 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(cluster.Do(RankTableAsked{old})));
  WorkerIdentity replayed = now;
  replayed.set_token(old.token());
  EXPECT_TRUE(absl::IsPermissionDenied(cluster.Do(RankTableAsked{replayed})));
  for (const std::string& token : {std::string(), now.token() + "x", now.token().substr(1)}) {
    replayed.set_token(token);
    EXPECT_TRUE(absl::IsPermissionDenied(cluster.Do(RankTableAsked{replayed}))) << token;
  }
  EXPECT_TRUE(cluster.Do(RankTableAsked{now}).ok());
}

TEST(Tokens, AreToldToAgentsOnly) {
  ClusterFixture cluster;
  ASSERT_TRUE(cluster.Join("n1", 1).ok());
  ASSERT_TRUE(cluster.Do(JobSubmitted{SmallJob("a", 1, 1, 1), "auto"}).ok());
  cluster.Live(absl::Seconds(5));
  ASSERT_TRUE(cluster.Restore("a").ok());
  cluster.AllReady("a");
  const std::string token = cluster.Worker("a", 0).token();
  EXPECT_THAT(cluster.Status("a").SerializeAsString(), ::testing::Not(HasSubstr(token)));
  EXPECT_THAT(cluster.state.rank_table("a")->SerializeAsString(), ::testing::Not(HasSubstr(token)));
  bool told = false;
  for (const Action& action : cluster.actions) {
    if (const auto* publish = std::get_if<PublishEvent>(&action)) {
      EXPECT_THAT(publish->event.SerializeAsString(), ::testing::Not(HasSubstr(token)));
    } else if (const auto* send = std::get_if<SendToAgent>(&action)) {
      told |= send->command.start().token() == token;
    }
  }
  EXPECT_TRUE(told);
}

TEST(IsLoopback, TakesOnlyThisMachine) {
  for (const char* own : {"127.0.0.1:0", "127.3.2.1:7470", "localhost:1", "[::1]:7470"}) {
    EXPECT_TRUE(IsLoopback(own)) << own;
  }
  for (const char* other : {"0.0.0.0:0", "[::]:1", "10.0.0.1:1", "127.0.0.1.evil.org:1",
                            "127.evil.0.1:1", "localhost.evil.org:1", "", ":1"}) {
    EXPECT_FALSE(IsLoopback(other)) << other;
  }
}

}  // namespace
}  // namespace moesaic
