#include "scheduler/certs/certificate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "scheduler/certs/authority.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;

const absl::Time kFrom = absl::FromUnixSeconds(1'700'000'000);
const Validity kYear = {kFrom, kFrom + absl::Hours(24 * 365)};

TEST(Certificate, SaysRoleNodeAndTimes) {
  const auto authority = Authority::Create(kYear);
  ASSERT_TRUE(authority.ok()) << authority.status();
  const auto pair = authority->Issue(ROLE_AGENT, "n1.rack_2", kYear);
  ASSERT_TRUE(pair.ok()) << pair.status();
  const auto certificate = ReadCertificate(pair->certificate);
  ASSERT_TRUE(certificate.ok()) << certificate.status();
  EXPECT_EQ(certificate->common_name, "agent");
  EXPECT_EQ(certificate->issuer, "moesaic authority");
  EXPECT_THAT(certificate->dns_names, ElementsAre("agent.moesaic", "n1.rack_2.agent.moesaic"));
  EXPECT_EQ(BoundNode(certificate->dns_names), "n1.rack_2");
  EXPECT_EQ(certificate->not_before, kYear.from);
  EXPECT_EQ(certificate->not_after, kYear.until);
  EXPECT_FALSE(certificate->is_authority);
  EXPECT_EQ(certificate->fingerprint.size(), 64u);
  EXPECT_TRUE(ReadCertificate(authority->pair().certificate)->is_authority);
}

TEST(Certificate, RolesAreNamedBothWays) {
  for (const Role role : {ROLE_CLI, ROLE_AGENT, ROLE_WORKER, ROLE_COORDINATOR}) {
    EXPECT_EQ(RoleNamed(RoleName(role)), role);
  }
  EXPECT_EQ(RoleName(ROLE_CLI), "cli");
  EXPECT_EQ(RoleNamed("none"), ROLE_NONE);
  EXPECT_EQ(RoleNamed("root"), ROLE_NONE);
}

TEST(Certificate, KeysOfOthersAndForeignTextAreRefused) {
  const auto authority = Authority::Create(kYear);
  ASSERT_TRUE(authority.ok());
  const auto one = authority->Issue(ROLE_CLI, "", kYear);
  const auto other = authority->Issue(ROLE_CLI, "", kYear);
  EXPECT_TRUE(CheckKeyPair(one->certificate, one->key).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(CheckKeyPair(one->certificate, other->key)));
  EXPECT_TRUE(absl::IsInvalidArgument(CheckKeyPair(one->certificate, "")));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadCertificate("-----BEGIN CERTIFICATE-----\n").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(authority->Issue(ROLE_AGENT, "a,DNS:b", kYear).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(authority->Issue(ROLE_AGENT, "../x", kYear).status()));
}

}  // namespace
}  // namespace moesaic
