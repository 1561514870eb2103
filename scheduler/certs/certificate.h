// What a certificate says. Roles, not hosts, are certified: the common name is a role, and one of
// the subjectAltName DNS entries is "<role>.moesaic". An agent's may be bound to one node by
// another entry, "<node>.agent.moesaic".
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/roles.pb.h"

namespace moesaic {

struct Certificate {
  std::string common_name;
  std::string issuer;  // its common name
  std::vector<std::string> dns_names;
  absl::Time not_before;
  absl::Time not_after;
  bool is_authority = false;
  std::string fingerprint;  // SHA-256 of the DER form, in hexadecimal digits
};

// The first certificate of a PEM text. InvalidArgument when there is none.
absl::StatusOr<Certificate> ReadCertificate(const std::string& pem);

// InvalidArgument unless `key` is the private key of `certificate` (both PEM).
absl::Status CheckKeyPair(const std::string& certificate, const std::string& key);

// "agent" <-> ROLE_AGENT; ROLE_NONE for what is no role.
std::string RoleName(Role role);
Role RoleNamed(absl::string_view name);

// "agent.moesaic": what a server of this role is known by.
std::string ServerName(Role role);
// "n1.agent.moesaic"
std::string NodeServerName(absl::string_view node);
// The node that a certificate with these names is bound to; none: any.
std::optional<std::string> BoundNode(const std::vector<std::string>& dns_names);

}  // namespace moesaic
