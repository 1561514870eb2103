// Who speaks to whom. Without TLS every local process is trusted: that is for loopback. With TLS
// both sides show a certificate of the cluster's authority (TLS 1.2 or newer); servers are known by
// their role, not by their host, and each method names the roles that may call it
// (proto/roles.proto).
#pragma once

#include <grpcpp/security/auth_context.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/roles.pb.h"

namespace moesaic {

struct TlsFiles {
  std::string ca;  // of the authority, PEM
  std::string certificate;
  std::string key;
};

// DIR/ca.pem, DIR/<role>.pem and DIR/<role>.key, as `moesaic certs init` makes them.
TlsFiles TlsFilesIn(const std::string& dir, Role role);

// How an agent tells its workers of theirs: MOESAIC_TLS_CA, MOESAIC_TLS_CERT, MOESAIC_TLS_KEY.
std::map<std::string, std::string> TlsVariables(const TlsFiles& files);
// Nothing when none is set. InvalidArgument when only some are.
absl::StatusOr<std::optional<TlsFiles>> TlsFilesFrom(
    const std::map<std::string, std::string>& environment);

// What a process proves with who it is. PEM texts.
struct TlsIdentity {
  std::string ca;
  std::string certificate;
  std::string key;
};

// NotFound, InvalidArgument (not PEM, key of another certificate, not of a role),
// FailedPrecondition (expired, not valid yet, a key that others may read): each names the file.
absl::StatusOr<TlsIdentity> LoadTls(const TlsFiles& files, absl::Time now);
// The same; nothing for nothing.
absl::StatusOr<std::optional<TlsIdentity>> LoadTls(const std::optional<TlsFiles>& files,
                                                   absl::Time now);

// Without `tls`: plain text.
std::shared_ptr<grpc::ChannelCredentials> ClientCredentials(const std::optional<TlsIdentity>& tls);
// With `tls`: refuses clients without a certificate, and, before any handler sees the call, those
// whose role may not call the method (PermissionDenied). It covers streams too.
std::shared_ptr<grpc::ServerCredentials> ServerCredentials(const std::optional<TlsIdentity>& tls);

// Whether `role` may call the method of this path ("/moesaic.Coordinator/SubmitJob").
// PermissionDenied for a method that there is not.
absl::Status CheckCaller(absl::string_view path, Role role);

// Whether the peer may speak for `node`: PermissionDenied when its certificate is bound to another.
absl::Status CheckNode(const grpc::AuthContext& peer, absl::string_view node);

// Whether "host:port" is of this machine only.
bool IsLoopback(absl::string_view address);

// FailedPrecondition for plain text to or at an address off loopback, unless `insecure`.
absl::Status CheckPlainText(absl::string_view address, bool has_tls, bool insecure);

}  // namespace moesaic
