// The certificates that `moesaic certs init` makes, and how verbs find and use them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <sstream>

#include "absl/time/clock.h"
#include "launcher/verbs/connection_flags.h"
#include "scheduler/service/server.h"
#include "tests/base/scratch_folder.h"
#include "tests/launcher/verbs/run_moesaic.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class CertsTest : public ::testing::Test {
 protected:
  static unsigned ModeOf(const std::string& path) {
    struct stat info = {};
    EXPECT_EQ(stat(path.c_str(), &info), 0) << path;
    return info.st_mode & 07777;
  }

  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
};

TEST_F(CertsTest, InitMakesOneOfEachRoleForTheirOwnersOnly) {
  const std::string certs = dir_ + "/certs";
  const VerbOutcome made = RunMoesaic({"certs", "init", certs, "--hosts", "n1,n2", "--days", "30"});
  ASSERT_EQ(made.exit_code, kExitOk) << made.err;
  EXPECT_THAT(made.out, HasSubstr("host of node n2: " + certs + "/hosts/n2/"));
  for (const Role role : {ROLE_CLI, ROLE_AGENT, ROLE_WORKER, ROLE_COORDINATOR}) {
    const TlsFiles files = TlsFilesIn(certs, role);
    EXPECT_TRUE(LoadTls(files, absl::Now()).ok());
    EXPECT_EQ(ModeOf(files.key), 0600u);
  }
  for (const auto& entry : std::filesystem::recursive_directory_iterator(certs)) {
    EXPECT_EQ(ModeOf(entry.path()), entry.is_directory() ? 0700u : 0600u) << entry.path();
  }
  EXPECT_TRUE(LoadTls(TlsFilesIn(certs + "/hosts/n1", ROLE_WORKER), absl::Now()).ok());
  const VerbOutcome agent = RunMoesaic({"certs", "show", certs + "/hosts/n1/agent.pem"});
  EXPECT_EQ(agent.exit_code, kExitOk);
  EXPECT_THAT(agent.out, HasSubstr("role agent, of node n1 only"));
  const VerbOutcome authority = RunMoesaic({"certs", "show", certs + "/ca.pem"});
  EXPECT_EQ(authority.exit_code, kExitOk);
  EXPECT_THAT(authority.out, HasSubstr("an authority"));
  EXPECT_EQ(RunMoesaic({"certs", "show", certs + "/cli.key"}).exit_code, kExitUsage);

  const VerbOutcome again = RunMoesaic({"certs", "init", certs});
  EXPECT_EQ(again.exit_code, kExitUsage);
  EXPECT_THAT(again.err, HasSubstr("never overwritten"));
  EXPECT_EQ(RunMoesaic({"certs", "init", dir_ + "/bad", "--hosts", "../n1"}).exit_code, kExitUsage);
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/bad"));
}

TEST_F(CertsTest, FilesThatDoNotFitAreNamed) {
  const std::string certs = dir_ + "/certs";
  ASSERT_EQ(RunMoesaic({"certs", "init", certs, "--days", "1"}).exit_code, kExitOk);
  TlsFiles files = TlsFilesIn(certs, ROLE_CLI);
  const auto refusal = [&files](absl::Duration later) {
    return std::string(LoadTls(files, absl::Now() + later).status().message());
  };
  EXPECT_EQ(refusal(absl::ZeroDuration()), "");
  EXPECT_THAT(refusal(absl::Hours(25)), HasSubstr("expired on"));
  EXPECT_THAT(refusal(-absl::Hours(1)), HasSubstr("not valid before"));
  chmod(files.key.c_str(), 0640);
  EXPECT_THAT(refusal(absl::ZeroDuration()), HasSubstr("chmod 600"));
  files.key = certs + "/agent.key";
  EXPECT_THAT(refusal(absl::ZeroDuration()), HasSubstr("agent.key: "));
  files.key = certs + "/none.key";
  EXPECT_THAT(refusal(absl::ZeroDuration()), HasSubstr("none.key"));
  files = TlsFilesIn(certs, ROLE_CLI);
  chmod(files.key.c_str(), 0600);
  files.certificate = files.ca;
  EXPECT_THAT(refusal(absl::ZeroDuration()), HasSubstr("is no role"));
}

class ConnectTest : public CertsTest {
 protected:
  void SetUp() override {
    CertsTest::SetUp();
    ASSERT_EQ(RunMoesaic({"certs", "init", dir_ + "/certs"}).exit_code, kExitOk);
    ASSERT_EQ(RunMoesaic({"certs", "init", dir_ + "/others"}).exit_code, kExitOk);
    CoordinatorOptions options;
    options.store_path = dir_ + "/coordinator.sqlite";
    core_ = *CoordinatorCore::Open(options);
    ServerOptions server;
    server.tls = *LoadTls(TlsFilesIn(dir_ + "/certs", ROLE_COORDINATOR), absl::Now());
    server_ = *CoordinatorServer::Start(core_.get(), server);
    context_.environment["MOESAIC_COORDINATOR"] = server_->address();
  }
  void TearDown() override {
    server_.reset();
    core_.reset();
    CertsTest::TearDown();
  }
  ExitCode Ask(const ConnectionFlags& flags, Role role) {
    const auto connection = Connect(flags, role, context_);
    if (!connection.ok()) return ExitCodeFor(connection.status());
    grpc::ClientContext call;
    JobStatus status;
    return ExitCodeFor(connection->Explain(connection->stub->GetJob(&call, JobRef(), &status)));
  }

  std::ostringstream out_;
  std::ostringstream err_;
  VerbContext context_{
      .out = out_, .err = err_, .environment = {}, .program_path = "", .vocabulary_of = {}};
  std::unique_ptr<CoordinatorCore> core_;
  std::unique_ptr<CoordinatorServer> server_;
};

TEST_F(ConnectTest, EnvironmentAndFlagsFindTheCertificates) {
  ConnectionFlags flags;
  context_.environment["MOESAIC_TLS_DIR"] = dir_ + "/certs";
  EXPECT_EQ(Ask(flags, ROLE_CLI), kExitNotFound);  // the call got through: there is no such job
  EXPECT_EQ(Ask(flags, ROLE_WORKER), kExitPermission);
  flags.tls.certificate = dir_ + "/certs/agent.pem";  // single files win over the folder
  flags.tls.key = dir_ + "/certs/agent.key";
  EXPECT_EQ(Ask(flags, ROLE_CLI), kExitPermission);
}

TEST_F(ConnectTest, WhatDoesNotFitHasItsExitCode) {
  ConnectionFlags flags;
  EXPECT_EQ(Ask(flags, ROLE_CLI), kExitUnreachable);  // plain text
  flags.tls.dir = dir_ + "/others";
  EXPECT_EQ(Ask(flags, ROLE_CLI), kExitPermission);  // of another authority
  flags.tls.dir = dir_ + "/nowhere";
  EXPECT_EQ(Ask(flags, ROLE_CLI), kExitNotFound);
  flags.tls.dir = "";
  flags.tls.ca = dir_ + "/certs/ca.pem";
  EXPECT_EQ(Ask(flags, ROLE_CLI), kExitUsage);  // a certificate is missing
  flags = ConnectionFlags();
  flags.coordinator = "192.0.2.1:7470";
  EXPECT_EQ(Ask(flags, ROLE_CLI), kExitUsage);  // plain text off loopback
  flags.coordinator = "127.0.0.1:1";
  EXPECT_EQ(Ask(flags, ROLE_CLI), kExitUnreachable);
  context_.environment.clear();
  EXPECT_EQ(FindCoordinator(ConnectionFlags(), context_), kDefaultCoordinator);
}

}  // namespace
}  // namespace moesaic
