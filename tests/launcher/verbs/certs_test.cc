// The certificates that `moesaic certs init` makes, and how verbs find and use them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <sstream>

#include "absl/time/clock.h"
#include "launcher/verbs/connection_flags.h"
#include "launcher/verbs/verb_list.h"
#include "scheduler/service/server.h"
#include "tests/base/scratch_folder.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class CertsTest : public ::testing::Test {
 protected:
  int Run(std::vector<std::string> arguments) {
    out_.str("");
    err_.str("");
    return RunProgram(std::move(arguments), context_);
  }
  static unsigned ModeOf(const std::string& path) {
    struct stat info = {};
    EXPECT_EQ(stat(path.c_str(), &info), 0) << path;
    return info.st_mode & 07777;
  }

  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  std::ostringstream out_;
  std::ostringstream err_;
  VerbContext context_{
      .out = out_, .err = err_, .environment = {}, .program_path = "", .vocabulary_of = {}};
};

TEST_F(CertsTest, InitMakesOneOfEachRoleForTheirOwnersOnly) {
  const std::string certs = dir_ + "/certs";
  ASSERT_EQ(Run({"certs", "init", certs, "--hosts", "n1,n2", "--days", "30"}), kExitOk)
      << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("host of node n2: " + certs + "/hosts/n2/"));
  for (const Role role : {ROLE_CLI, ROLE_AGENT, ROLE_WORKER, ROLE_COORDINATOR}) {
    const TlsFiles files = TlsFilesIn(certs, role);
    EXPECT_TRUE(LoadTls(files, absl::Now()).ok());
    EXPECT_EQ(ModeOf(files.key), 0600u);
  }
  for (const auto& entry : std::filesystem::recursive_directory_iterator(certs)) {
    EXPECT_EQ(ModeOf(entry.path()), entry.is_directory() ? 0700u : 0600u) << entry.path();
  }
  EXPECT_TRUE(LoadTls(TlsFilesIn(certs + "/hosts/n1", ROLE_WORKER), absl::Now()).ok());
  EXPECT_EQ(Run({"certs", "show", certs + "/hosts/n1/agent.pem"}), kExitOk);
  EXPECT_THAT(out_.str(), HasSubstr("role agent, of node n1 only"));
  EXPECT_EQ(Run({"certs", "show", certs + "/ca.pem"}), kExitOk);
  EXPECT_THAT(out_.str(), HasSubstr("an authority"));
  EXPECT_EQ(Run({"certs", "show", certs + "/cli.key"}), kExitUsage);

  EXPECT_EQ(Run({"certs", "init", certs}), kExitUsage);
  EXPECT_THAT(err_.str(), HasSubstr("never overwritten"));
  EXPECT_EQ(Run({"certs", "init", dir_ + "/bad", "--hosts", "../n1"}), kExitUsage);
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/bad"));
}

TEST_F(CertsTest, FilesThatDoNotFitAreNamed) {
  const std::string certs = dir_ + "/certs";
  ASSERT_EQ(Run({"certs", "init", certs, "--days", "1"}), kExitOk);
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
    ASSERT_EQ(Run({"certs", "init", dir_ + "/certs"}), kExitOk);
    ASSERT_EQ(Run({"certs", "init", dir_ + "/others"}), kExitOk);
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
