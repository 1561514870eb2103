// The flags of every verb that speaks to a cluster or is a part of one: where the coordinator is,
// and the certificate that this process proves itself with.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "launcher/verbs/verb.h"
#include "proto/coordinator.grpc.pb.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

// MOESAIC_COORDINATOR and MOESAIC_TLS_DIR stand in for --coordinator and --tls-dir.
inline constexpr char kDefaultCoordinator[] = "127.0.0.1:7470";

struct TlsFlags {
  std::string dir;  // ca.pem, <role>.pem, <role>.key
  std::string ca;   // single files win over the folder
  std::string certificate;
  std::string key;
  bool insecure = false;  // plain text off loopback
};

struct ConnectionFlags {
  std::string coordinator;
  TlsFlags tls;
};

// `flags` must outlive the parse.
void AddTlsFlags(CLI::App* verb, TlsFlags* flags);
void AddConnectionFlags(CLI::App* verb, ConnectionFlags* flags);

// Which files the flags and the environment name for `role`; none: plain text. InvalidArgument when
// some are missing.
absl::StatusOr<std::optional<TlsFiles>> FindTlsFiles(const TlsFlags& flags, Role role,
                                                     const VerbContext& context);
// The same, read and checked.
absl::StatusOr<std::optional<TlsIdentity>> FindTls(const TlsFlags& flags, Role role,
                                                   const VerbContext& context);

// --coordinator, MOESAIC_COORDINATOR, or this machine's.
std::string FindCoordinator(const ConnectionFlags& flags, const VerbContext& context);

struct CoordinatorConnection {
  std::string target;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<Coordinator::Stub> stub;

  // What the failure of a call means to people: Unavailable (exit 5) names the address, and
  // PermissionDenied (exit 4) says when it is the certificates that do not fit. `proven`: a call
  // was answered before, so a handshake that fails is the end of a coordinator that is being
  // restarted.
  absl::Status Explain(const grpc::Status& status, bool proven = false) const;
};

// Does not connect yet. FailedPrecondition for plain text off loopback without --insecure.
absl::StatusOr<CoordinatorConnection> Connect(const ConnectionFlags& flags, Role role,
                                              const VerbContext& context);

}  // namespace moesaic
